"""Operators against slow references: right here, and seen to be wrong where one is made so."""

import importlib

import numpy as np
import pytest
import torch
import torchvision

import tsd.ops
from tests.doctor.conftest import context
from tsd.doctor import operators, reference
from tsd.doctor.operators import Operator, outcome

CUDA = torch.device("cuda", 0)

mmcv_ext = importlib.import_module("mmcv._ext")
functional = torch.nn.functional


@pytest.fixture(autouse=True)
def only_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_every_operator_is_right_on_this_cpu(examined):
    line = examined("operators", context()).only("ok")
    for name in ("NMS", "soft-NMS", "RoIAlign", "mmcv's deformable convolution", "pooling (torch)", "batch norm"):
        assert name in line.finding
    assert "as slow references, to 0.0001" in line.finding


def every(boxes, scores, iou_threshold, offset):
    return scores.sort(0, descending=True)[1]


def scaled(function, factor=1.01):
    return lambda *arguments, **options: factor * function(*arguments, **options)


def filled(function, place, factor=1.01):
    """As a function that writes into one of its arguments."""

    def wrong(*arguments, **options):
        function(*arguments, **options)
        arguments[place].mul_(factor)

    return wrong


WRONG = {
    "NMS": (mmcv_ext, "nms", every),
    "soft-NMS": (mmcv_ext, "softnms", lambda *arguments, **_: filled(mmcv_ext.softnms, 2)),
    "RoIAlign": (mmcv_ext, "roi_align_forward", filled(mmcv_ext.roi_align_forward, 2)),
    "RoIAlign: gradient of features": (mmcv_ext, "roi_align_backward", filled(mmcv_ext.roi_align_backward, 4)),
    "mmcv's deformable convolution": (mmcv_ext, "deform_conv_forward", filled(mmcv_ext.deform_conv_forward, 3)),
    "mmcv's deformable convolution: gradient of offset": (
        mmcv_ext,
        "deform_conv_backward_input",
        filled(mmcv_ext.deform_conv_backward_input, 4),
    ),
    "mmcv's deformable convolution: gradient of weight": (
        mmcv_ext,
        "deform_conv_backward_parameters",
        filled(mmcv_ext.deform_conv_backward_parameters, 3),
    ),
    "deformable convolution": (torchvision.ops, "deform_conv2d", scaled(torchvision.ops.deform_conv2d)),
    "deformable RoI pooling (torch)": (tsd.ops, "deform_roi_pool", scaled(tsd.ops.deform_roi_pool)),
    "convolution and batch norm": (functional, "batch_norm", scaled(functional.batch_norm)),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_operator_that_is_wrong_is_named(examined, monkeypatch, name):
    place, attribute, wrong = WRONG[name]
    monkeypatch.setattr(place, attribute, wrong)
    answer = examined("operators", context())
    assert answer.status == 1
    assert any(line.finding.startswith(f"on cpu: {name}") for line in answer.lines), answer.lines
    assert all(line.state == "error" and "make setup" in line.remedy for line in answer.lines)


def test_an_operator_that_is_missing_says_so_and_the_others_are_tried(examined, monkeypatch):
    def nothing(*arguments, **options):
        raise RuntimeError("nms_impl: implementation for device cpu not found.\n")

    monkeypatch.setattr(mmcv_ext, "nms", nothing)
    line = examined("operators", context()).only("error")
    assert line.finding == "on cpu: NMS: RuntimeError: nms_impl: implementation for device cpu not found."


def on(results):
    """An operator that gives for each kind of device what it is told to."""
    return Operator("one", lambda device: {"output": torch.tensor(results[device.type])}, lambda: {})


def test_on_a_gpu_the_cpus_results_are_expected():
    assert outcome(on({"cpu": [1.0, 2.0], "cuda": [1.0, 2.00005]}), CUDA) is None
    assert outcome(on({"cpu": [1.0, 2.0], "cuda": [1.0, 2.1]}), CUDA) == "output differs by 0.05"
    assert outcome(on({"cpu": [1.0, 2.0], "cuda": [1.0, float("nan")]}), CUDA) == "output differs by nan"
    assert outcome(on({"cpu": [1.0, 2.0], "cuda": [1.0]}), CUDA) == "output: (1,) in place of (2,)"


def test_each_gpu_that_is_seen_has_lines_of_its_own(examined, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    wrong = {"cpu": [1.0], "cuda": [2.0]}
    monkeypatch.setattr(operators, "listed", lambda device: [on(wrong)] if device.index == 1 else [])
    answer = examined("operators", context())
    assert [line.state for line in answer.lines] == ["ok", "ok", "error"]
    assert answer.lines[2].finding == "on cuda:1: one: output differs by 1"
    assert "`nvidia-smi -q -i 1 " in answer.lines[2].remedy


def test_the_reference_of_nms_takes_equal_scores_in_any_order():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], dtype=float)
    scores = np.array([0.5, 0.5, 0.5])
    assert reference.wrongly_suppressed(boxes, scores, [0, 2], 0.5) == 0
    assert reference.wrongly_suppressed(boxes, scores, [2, 1], 0.5) == 0
    assert reference.wrongly_suppressed(boxes, scores, [0, 1, 2], 0.5) == 2
    assert reference.wrongly_suppressed(boxes, scores, [0], 0.5) == 1
    scores[1] = 0.9
    assert reference.wrongly_suppressed(boxes, scores, [0, 2], 0.5) == 1  # the better one was dropped
    assert reference.wrongly_suppressed(boxes, scores, [2, 1], 0.5) == 1  # not in falling order


def test_the_reference_of_pooling_on_a_plane_is_the_value_at_each_cells_centre():
    y, x = np.mgrid[0:8, 0:8].astype(float)
    features = (2 * x + 3 * y)[None]
    pooled = reference.pool(features, np.array([1.0, 2.0, 5.0, 4.0]), None, size=2, samples=3, gamma=0)
    np.testing.assert_allclose(pooled[0], [[2 * 2 + 3 * 2.5, 2 * 4 + 3 * 2.5], [2 * 2 + 3 * 3.5, 2 * 4 + 3 * 3.5]])
    shift = np.full((2, 2, 2), 0.5)
    moved = reference.pool(features, np.array([1.0, 2.0, 5.0, 4.0]), shift, size=2, samples=3, gamma=0.5)
    np.testing.assert_allclose(moved - pooled, np.full((1, 2, 2), 2 * 0.5 * 0.5 * 4 + 3 * 0.5 * 0.5 * 2))
