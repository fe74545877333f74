"""Every experiment of params/experiments.yaml is built, takes one training step, and predicts, at a small size."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import ROOT, project_with_scenes
from tsd.engine import checkpoint
from tsd.engine.config import load_config
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite
from tsd.engine.predict import predict
from tsd.engine.settings import has_masks
from tsd.errors import InputError

EXPERIMENTS = list(yaml.safe_load((ROOT / "params/experiments.yaml").read_text())["experiments"])

SMALL = {
    "backbone": {"base_channels": 8, "norm": "bn", "frozen_stages": -1, "pretrained": None},
    "neck": {"channels": 16},
    "rpn": {"samples": 32, "train_proposals": 50},
    "roi": {"samples": 16},
    "head": {"fc_channels": 32},
    "input": {"size": [64, 64]},
    "schedule": {"batch_size": 2, "optimizer": "sgd", "lr": 0.0001},
    "test": {"proposals": 20, "max_per_image": 10},
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The tiny suite with every experiment, its data made."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project_with_scenes(tmp_path_factory.mktemp("every") / "project", patch)
        path = folder / "params/suites/tiny.yaml"
        content = yaml.safe_load(path.read_text()) | {"experiments": EXPERIMENTS, "override": {}, "recipe": "paper"}
        path.write_text(yaml.safe_dump(content))
        yield load_suite("tiny")


def small(settings):
    """The experiment's own choices, on a network of a few channels."""
    settings = copy.deepcopy(settings)
    for part, values in SMALL.items():
        settings[part] |= {key: value for key, value in values.items() if key in settings[part]}
    if settings["head"]["type"] == "tsd":
        settings["head"]["delta_channels"] = 16
    if settings["backbone"].get("dcn"):  # mmcv's operator wants maps of at least its kernel
        settings["input"]["size"] = [96, 96]
        if settings["backbone"].get("type") == "resnext":  # random, and ten channels wide, the gradients of 101 explode
            settings["backbone"]["depth"] = 50
    if "train_sizes" in settings["input"]:
        settings["input"]["train_sizes"] = [[128, 96], [128, 128]]
    if "sizes" in settings["test"]:
        settings["test"]["sizes"] = [[96, 96], [128, 128]]
    return settings


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_trains_a_step_and_predicts(suite, experiment, tmp_path):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    suite = replace(suite, settings={experiment: small(suite.settings[experiment])}, experiments=(experiment,))
    run = get_run(suite, experiment, 0, data_digest(suite))
    config = load_config(run)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the one batch's statistics: a deep network explodes with those it starts from
    loader = Runner.build_dataloader(config.train_dataloader)
    data = model.data_preprocessor(next(iter(loader)), True)
    losses, _ = model.parse_losses(model(**data, mode="loss"))
    assert torch.isfinite(losses)
    losses.backward()
    unused = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not unused, "a parameter without gradient stops distributed training"
    torch.nn.utils.clip_grad_norm_(model.parameters(), run.settings["schedule"]["clip_norm"], error_if_nonfinite=True)
    torch.optim.SGD(model.parameters(), lr=1e-5).step()

    path = tmp_path / "checkpoint.pth"
    checkpoint.save(path, {"meta": {}, "state_dict": model.state_dict()})
    found = predict(run, path, tmp_path / "predictions.json", limit=2)
    detections = json.loads((tmp_path / "predictions.json").read_text())
    assert len(detections) == found > 0
    assert all(("segmentation" in detection) == has_masks(run.settings) for detection in detections)
    with np.load(tmp_path / "proposals.npz") as arrays:
        tsd_head = run.settings["head"]["type"] == "tsd" and "sizes" not in run.settings["test"]
        assert ("reg_proposal" in arrays) == tsd_head
        assert len(arrays["bbox"]) == found


def test_class_aware_sampling_of_coco_data_shows_each_class_as_often(suite):
    from mmengine.runner import Runner

    name = "baseline_class_aware"
    suite = replace(suite, settings={name: small(suite.settings[name])}, experiments=(name,))
    run = get_run(suite, name, 0, data_digest(suite))
    loader = Runner.build_dataloader(load_config(run).train_dataloader)
    content = json.loads(suite.split("train")[0].read_text())
    in_pictures = [
        {entry["image_id"] for entry in content["annotations"] if entry["category_id"] == category["id"]}
        for category in content["categories"]
    ]
    index = loader.dataset.class_index()
    numbers = [loader.dataset.inner.get_data_info(picture)["img_id"] for picture in range(len(loader.dataset))]
    for label, expected in enumerate(in_pictures):
        own = index.pictures[index.starts[label] : index.starts[label + 1]]
        assert {numbers[picture] for picture in own} == expected
    classes, pictures = loader.batch_sampler.sampler.sequence.draw(0, 4 * len(in_pictures))
    assert np.bincount(classes).tolist() == [4] * len(in_pictures)
    assert all(numbers[picture] in in_pictures[label] for label, picture in zip(classes, pictures, strict=True))


def test_other_pictures_than_the_suites_are_predicted_too(suite, tmp_path):
    """As for test-dev: a list of pictures without annotations."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    suite = replace(suite, settings={"baseline": small(suite.settings["baseline"])}, experiments=("baseline",))
    run = get_run(suite, "baseline", 0, data_digest(suite))
    config = load_config(run)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "a.pth", {"meta": {}, "state_dict": MODELS.build(config.model).state_dict()})
    annotations, images = suite.split("train")
    content = json.loads(annotations.read_text())
    listed = {"images": content["images"][:3], "categories": content["categories"]}
    (tmp_path / "info.json").write_text(json.dumps(listed))
    number = predict(run, tmp_path / "a.pth", tmp_path / "predictions.json", pictures=(tmp_path / "info.json", images))
    detections = json.loads((tmp_path / "predictions.json").read_text())
    assert number == len(detections)
    assert {entry["image_id"] for entry in detections} == {image["id"] for image in listed["images"]}
    (tmp_path / "info.json").write_text(json.dumps(listed | {"categories": listed["categories"][:1]}))
    with pytest.raises(InputError, match=r"info.json: expected COCO JSON with the categories of suite tiny"):
        predict(run, tmp_path / "a.pth", tmp_path / "b.json", pictures=(tmp_path / "info.json", images))
