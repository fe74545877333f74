"""Where instances are classified and localised well, against boxes moved by hand and against the head itself."""

import mmcv
import numpy as np
import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from tests.conftest import project_with_scenes, tsd
from tests.workflow.test_pipeline import edit
from tsd.cli import main
from tsd.engine.config import load_config
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite
from tsd.engine.record import annotated_pictures, class_titles
from tsd.engine.sensitivity import choose, find, measure, positions
from tsd.errors import InputError
from tsd.report.sensitivity import Instance, Sensitivity, agreement


@pytest.fixture
def given(tmp_path, monkeypatch):
    """(run, checkpoint with random weights, instances) of suites in which pictures are enlarged."""
    project = project_with_scenes(tmp_path / "project", monkeypatch)
    edit(project / "params/suites/tiny.yaml", lambda suite: suite["override"]["input"].update(size=[96, 96]))

    def make(experiment):
        suite = load_suite("tiny")
        run = get_run(suite, experiment, 0, data_digest(suite))
        init_default_scope("mmdet")
        torch.manual_seed(0)
        model = MODELS.build(load_config(run).model)
        torch.save({"state_dict": model.state_dict()}, "weights.pth")
        return run, project / "weights.pth", choose(annotated_pictures(suite.data), 2), model

    return make


def test_boxes_of_the_instances_size_are_moved_over_the_picture(given, monkeypatch):
    """A head that returns its proposals: the IoU is that of the moved box, in the original picture's pixels."""

    def echo(self, x, metas, proposals, config, rescale=False):
        boxes = proposals[0].bboxes
        number = self.bbox_head.num_classes
        scores = torch.arange(number + 1.0).expand(len(boxes), -1)
        return [InstanceData(bboxes=boxes.repeat(1, number), scores=scores)]

    monkeypatch.setattr(StandardRoIHead, "predict_bbox", echo)
    run, weights, instances, _ = given("baseline")
    for one in measure(run, weights, instances, grid=5):
        x1, y1, x2, y2 = one.instance.box
        width, height = x2 - x1, y2 - y1
        for row, y in enumerate(one.y):
            for column, x in enumerate(one.x):
                overlap = max(0, width - abs(x - (x1 + x2) / 2)) * max(0, height - abs(y - (y1 + y2) / 2))
                expected = overlap / (2 * width * height - overlap)
                assert one.iou[row, column] == pytest.approx(expected, abs=1e-5)
        assert len(np.unique(one.probability)) == 1  # the column of the instance's class
        assert one.probability[0, 0] == list(class_titles(run.suite.data).values()).index(one.instance.name)


@pytest.mark.parametrize("experiment", ["baseline", "tsd_pc"])
def test_the_maps_are_the_heads_own_answers(given, experiment):
    """One position against the head's forward pass, written out."""
    run, weights, instances, model = given(experiment)
    one = measure(run, weights, instances[:1], grid=3)[0]
    model.eval()
    picture = next(entry for entry in annotated_pictures(run.suite.data) if entry[0] == one.instance.image_id)
    pixels = np.asarray(Image.open(picture[1]).convert("RGB"))[:, :, ::-1]
    factor = 96 / pixels.shape[0]
    image = torch.as_tensor(mmcv.imresize(pixels, (96, 96)).transpose(2, 0, 1).copy())
    with torch.inference_mode():
        batch = model.data_preprocessor({"inputs": [image], "data_samples": None}, False)
        features = model.extract_feat(batch["inputs"])
        box = one.instance.box
        half = (box[2:] - box[:2]) / 2
        centre = np.array([one.x[2], one.y[1]])
        moved = torch.as_tensor(np.concatenate([centre - half, centre + half]) * factor, dtype=torch.float32)[None]
        logits = model.roi_head._bbox_forward(features, bbox2roi([moved]))["cls_score"]
    label = list(class_titles(run.suite.data).values()).index(one.instance.name)
    assert one.probability[1, 2] == pytest.approx(float(logits.softmax(dim=1)[0, label]), abs=1e-5)
    assert 0 <= one.iou.min() <= one.iou.max() <= 1


def test_positions_stay_in_the_picture():
    x, y = positions(np.array([10.0, 20, 30, 60]), (100, 70), 5)
    assert x.tolist() == [0, 10, 20, 30, 40]
    assert y.tolist() == pytest.approx([0, 17.5, 35, 52.5, 70])


def test_a_whole_instance_of_a_tenth_of_its_picture_is_chosen(tmp_path):
    """Pictures of 100 x 100: shares 0.09 and 0.16, then one that the border cuts, then a whole one of 0.25."""
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    pictures = [
        (1, np.array([[10, 10, 50, 50], [20, 20, 50, 50.0]]), ["large", "near"]),
        (2, np.array([[0, 10, 31, 42.0]]), ["cut"]),
        (3, np.array([[0, 10, 31, 42], [10, 10, 60, 60.0]]), ["cut", "whole"]),
    ]
    given = [(number, tmp_path / "a.png", boxes, names) for number, boxes, names in pictures]
    assert [(one.image_id, one.name) for one in choose(given, 5)] == [(1, "near"), (3, "whole"), (2, "cut")]
    assert len(choose(given, 2)) == 2


def test_agreement():
    instance = Instance(1, None, np.zeros(4), "a")
    ramp = np.arange(9.0).reshape(3, 3) / 9
    axis = np.arange(3.0)
    assert agreement(Sensitivity(instance, axis, axis, ramp, ramp)) == pytest.approx(1)
    assert agreement(Sensitivity(instance, axis, axis, ramp, 1 - ramp)) == pytest.approx(-1)
    assert agreement(Sensitivity(instance, axis, axis, ramp, np.zeros((3, 3)))) is None


def test_the_verb_draws_one_instance(given):
    _, weights, instances, _ = given("tsd_pc")
    words = ["--suite", "tiny", "--experiment", "tsd_pc", "--checkpoint", weights, "--grid", "4", "--output", "a.png"]
    done = tsd("sensitivity", *words)
    assert done.returncode == 0, done.stderr
    assert f"a.png: a {instances[0].name} in {instances[0].image}" in done.stdout
    arrays = np.load("a.npz")
    assert arrays["probability"].shape == arrays["iou"].shape == (4, 4)
    assert arrays["box"] == pytest.approx(instances[0].box)


def test_bad_input_is_named(given, capsys):
    run, weights, _, _ = given("baseline")
    every = list(annotated_pictures(run.suite.data))
    with pytest.raises(InputError, match="--picture 999: no val picture"):
        find(every, "999", 0)
    with pytest.raises(InputError, match=r"--instance 7: picture 1 has \d"):
        find([(1, *every[0][1:])], "1", 7)
    words = ["sensitivity", "--suite", "tiny", "--experiment", "baseline", "--output", "a.png"]
    assert main(words) == 2
    assert "checkpoint.pth" in capsys.readouterr().err
    assert main([*words[:2], "openimages-demo", *words[3:], "--checkpoint", str(weights)]) == 2
    assert "not of Open Images" in capsys.readouterr().err
