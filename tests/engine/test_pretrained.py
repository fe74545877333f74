"""ImageNet weights through a training: what is frozen stays the file's to the bit, and what is trained starts there.

The files hold random values in the published layouts, with statistics that fit them; see `test_weights.py` for the
layouts themselves.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from tests.conftest import ROOT, project_with_scenes
from tsd.engine import checkpoint
from tsd.engine.config import load_config
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite
from tsd.engine.train import train
from tsd.engine.weights import OFFSETS, mobilenet_v2_names
from tsd.models.timm_backbone import TimmBackbone

SMALL = {
    "backbone": {"base_channels": 8, "norm": "frozen_bn", "frozen_stages": 1, "pretrained": "published"},
    "neck": {"channels": 16},
    "rpn": {"anchor_scales": [4], "samples": 32, "train_proposals": 50},
    "roi": {"samples": 16},
    "head": {"fc_channels": 32},
    "input": {"size": [64, 64]},
    "schedule": {
        "epochs": 1,
        "milestones": [1],
        "batch_size": 4,
        "optimizer": "adamw",
        "lr": 0.0001,
        "weight_decay": 0.0,
        "warmup_epochs": 0,
    },
    "test": {"proposals": 20, "max_per_image": 10},
}

FARTHEST = 0.001
"""How far three steps of AdamW at that learning rate can move a weight."""


def one_of_each_backbone() -> dict[str, str]:
    """Backbone with what is shared of it → the first experiment that has it."""
    book = yaml.safe_load((ROOT / "params/experiments.yaml").read_text())
    found: dict[str, str] = {}
    for name, experiment in book["experiments"].items():
        while "backbone" not in experiment and "disentangle" not in experiment and "extends" in experiment:
            experiment = book["experiments"][experiment["extends"]]
        kind = [experiment.get("backbone", {}), experiment.get("disentangle", "none")]
        found.setdefault(json.dumps(kind, sort_keys=True), name)
    return found


EXPERIMENTS = sorted(set(one_of_each_backbone().values()) - {"d_head"})


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The tiny suite with every experiment, its data made; the current folder is its project."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project_with_scenes(tmp_path_factory.mktemp("pretrained") / "project", patch)
        path = folder / "params/suites/tiny.yaml"
        names = list(yaml.safe_load((ROOT / "params/experiments.yaml").read_text())["experiments"])
        content = yaml.safe_load(path.read_text()) | {"experiments": names, "override": {}, "recipe": "released"}
        content["monitor"]["checkpoint_steps"] = 2
        path.write_text(yaml.safe_dump(content))
        patch.setenv("TSD_WEIGHTS", str(folder / "published.pth"))
        yield load_suite("tiny")


def small_run(suite, experiment):
    settings = copy.deepcopy(suite.settings[experiment])
    for part, values in SMALL.items():
        settings[part] |= {key: value for key, value in values.items() if key in settings[part] or part == "schedule"}
    return get_run(replace(suite, settings=suite.settings | {experiment: settings}), experiment, 0, data_digest(suite))


def detector(run):
    init_default_scope("mmdet")
    torch.manual_seed(5)
    model = MODELS.build(load_config(run).model)
    model.init_weights()
    return model


def publish(backbone, path: Path) -> dict[str, torch.Tensor]:
    """Write the backbone as a classifier's weights are published; returns what it holds under its own names."""
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = 1.0
    torch.nn.Module.train(backbone, True)
    for norm in norms:
        norm.train()
    with torch.no_grad():
        backbone(torch.rand(8, 3, 64, 64) * 4 - 2)
    for name, module in backbone.named_modules():
        if name.startswith("reg_layer"):  # a branch of its own later, in the file the same as the other's
            module.load_state_dict(backbone.get_submodule(name.removeprefix("reg_")).state_dict())
    own = {key: value.clone() for key, value in backbone.state_dict().items()}
    plain = {key: value for key, value in own.items() if not key.startswith("reg_") and OFFSETS not in key}
    if isinstance(backbone, TimmBackbone):
        plain = {theirs: plain[ours] for theirs, ours in backbone.plain_names().items()}
    if type(backbone).__name__ == "MobileNetV2":
        plain = {theirs: plain[ours] for theirs, ours in mobilenet_v2_names().items()}
    torch.save(plain | {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, path)
    return own


def spread(backbone) -> float:
    """How much the last features differ between pictures, relative to their size."""
    backbone.eval()
    torch.manual_seed(3)
    with torch.no_grad():
        features = torch.stack([backbone(torch.rand(1, 3, 64, 64) * 4 - 2)[-1] for _ in range(4)])
    return float(features.std(dim=0).mean() / features.abs().mean())


def backbone_of(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}


def frozen_names(model) -> set[str]:
    """Parameters without gradient, and the statistics, all of which are frozen here."""
    fixed = {name for name, value in model.backbone.named_parameters() if not value.requires_grad}
    return fixed | {name for name, _ in model.backbone.named_buffers() if "running" in name}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_training_keeps_the_files_frozen_tensors_and_starts_the_others_there(suite, experiment):
    run = small_run(suite, experiment)
    model = detector(run)
    file = publish(model.backbone, Path("published.pth"))
    fresh = spread(model.backbone)
    train(run)
    trained = backbone_of(run.checkpoint)
    frozen = frozen_names(model)
    assert frozen & {
        "conv1.weight",
        "conv1.conv.weight",
        "layer0.conv1.weight",
        "body.conv_stem.weight",
        "body.stem_0.weight",
    }
    for name in frozen:
        assert torch.equal(trained[name], file[name]), name
    moved = 0.0
    for name in set(file) - frozen:
        if name.endswith("num_batches_tracked"):
            continue
        start = torch.zeros_like(file[name]) if OFFSETS in name else file[name]
        change = float((trained[name] - start).abs().max())
        assert change < FARTHEST, name
        moved = max(moved, change)
    assert moved > 0
    model.backbone.load_state_dict(trained)
    assert spread(model.backbone) > fresh / 4 > 0.05
    facts = json.loads((run.folder / "environment.json").read_text())
    content = torch.load(run.checkpoint, weights_only=True)
    assert facts["pretrained_sha256"] == content["meta"]["pretrained_sha256"]


@pytest.mark.parametrize("experiment", ["baseline_r101_dcn", "d_s16", "baseline_mobilenet_v2"])
def test_resuming_ends_with_the_same_bits_and_needs_no_weights_file(suite, experiment, monkeypatch):
    run = small_run(suite, experiment)
    publish(detector(run).backbone, Path("published.pth"))
    train(run)
    whole = torch.load(run.checkpoint, weights_only=True)
    run.checkpoint.unlink()
    newest, *_ = checkpoint.steps(run.folder / "checkpoints")
    newest[1].unlink()
    monkeypatch.delenv("TSD_WEIGHTS")
    train(run)
    resumed = torch.load(run.checkpoint, weights_only=True)
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    facts = json.loads((run.folder / "environment.json").read_text())
    assert resumed["meta"]["pretrained_sha256"] == facts["pretrained_sha256"] == whole["meta"]["pretrained_sha256"]


def test_a_finished_run_keeps_the_digest_of_its_weights_when_a_repetition_fails(suite, monkeypatch):
    run = small_run(suite, "baseline")
    publish(detector(run).backbone, Path("published.pth"))
    train(run)
    before = json.loads((run.folder / "environment.json").read_text())["pretrained_sha256"]
    monkeypatch.setattr("tsd.engine.runner.StrictRunner.resume", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(run)
    assert json.loads((run.folder / "environment.json").read_text())["pretrained_sha256"] == before


def test_every_backbone_is_tried():
    tried = set(one_of_each_backbone().values())
    assert {"baseline", "d_s8", "d_s16", "d_s32", "baseline_r101_dcn", "baseline_mobilenet_v2"} <= tried
    assert any("senet154" in name for name in EXPERIMENTS)
    assert sum("x101" in name for name in EXPERIMENTS) == 3


def test_matrix_products_are_as_exact_as_the_settings_say(suite, monkeypatch):
    """The setting is the process's own: each training says what it wants."""
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr("tsd.engine.train._train", lambda *_: None)
    own = small_run(suite, "baseline")
    train(own)
    fast = copy.deepcopy(own.settings) | {"schedule": own.settings["schedule"] | {"float32_matmul": "high"}}
    other = get_run(replace(own.suite, settings={"baseline": fast}), "baseline", 0, own.data_digest)
    assert other.digest != own.digest
    train(other)
    assert asked == ["highest", "high"]
