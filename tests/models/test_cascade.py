"""Cascade R-CNN with TSD heads, against mmdet's own cascade and by hand."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

import tsd.models  # noqa: F401
from tsd.engine.model import build_model
from tsd.engine.params import load_suite

META = {"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0), "batch_input_shape": (64, 64)}


@pytest.fixture
def settings(project):
    """Of a small cascade with TSD heads."""
    chosen = copy.deepcopy(load_suite("tiny").settings["tsd_pc"])
    return chosen | {"detector": "cascade_rcnn"}


def roi_head(settings):
    config = build_model(settings, 3, "released")
    rcnn = {"train_cfg": config["train_cfg"]["rcnn"], "test_cfg": config["test_cfg"]["rcnn"]}
    torch.manual_seed(0)
    head = MODELS.build(ConfigDict(config["roi_head"] | rcnn))
    head.init_weights()
    return head


def pyramid(channels=16):
    torch.manual_seed(1)
    return tuple(torch.rand(2, channels, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64))


def proposals(*counts):
    torch.manual_seed(2)
    corner = [torch.rand(count, 2) * 30 for count in counts]
    return [InstanceData(bboxes=torch.cat((xy, xy + 10 + torch.rand(len(xy), 2) * 20), 1)) for xy in corner]


def samples(*boxes):
    found = []
    for picture in boxes:
        sample = DetDataSample(metainfo=META)
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(picture).reshape(-1, 4), labels=torch.zeros(len(picture), dtype=torch.long)
        )
        found.append(sample)
    return found


TWO = ([[5.0, 5.0, 30.0, 30.0]], [[10.0, 20.0, 40.0, 50.0]])


def test_each_stage_has_the_losses_of_a_whole_tsd_head(settings):
    head = roi_head(settings)
    losses = head.loss(pyramid(), proposals(20, 20), samples(*TWO))
    names = {"tsd_cls", "tsd_bbox", "cls", "bbox", "pc_cls", "pc_loc"}
    assert {name for name in losses if "loss" in name} == {
        f"s{stage}.loss_{name}" for stage in range(3) for name in names
    }
    sum(value for name, value in losses.items() if "loss" in name).backward()
    for stage in range(3):
        assert all(value.grad is not None for value in head.bbox_head[stage].parameters())


def test_stage_weights_multiply_every_loss_of_a_stage(settings):
    plain = roi_head(settings | {"cascade": {"stage_weights": [1, 1, 1]}})
    weighted = roi_head(settings | {"cascade": {"stage_weights": [1, 0.5, 0.25]}})
    results = []
    for head in (plain, weighted):
        torch.manual_seed(3)
        results.append(head.loss(pyramid(), proposals(20, 20), samples(*TWO)))
    for name in ("loss_tsd_cls", "loss_pc_cls", "loss_bbox"):
        assert results[1][f"s1.{name}"].item() == pytest.approx(0.5 * results[0][f"s1.{name}"].item())
        assert results[1][f"s2.{name}"].item() == pytest.approx(0.25 * results[0][f"s2.{name}"].item())


def test_without_offsets_it_detects_what_mmdets_cascade_does(settings):
    """Shared proposals make a TSD stage a plain two-branch one: mmdet's own loop must find the same boxes."""
    plain = settings | {"head": settings["head"] | {"cls_proposal": "shared", "reg_proposal": "shared"}}
    head = roi_head(plain).eval()
    for stage in head.bbox_head:  # boxes that move, and labels that differ
        torch.nn.init.normal_(stage.fc_reg.weight, std=0.1)
        torch.nn.init.normal_(stage.fc_cls.weight, std=0.5)
    config = build_model(plain | {"head": {"type": "sibling", "fc_channels": 32}}, 3, "released")["roi_head"]
    branches = {"type": "ConvFCBBoxHead", "num_cls_fcs": 2, "num_reg_fcs": 2}
    config["bbox_head"] = [stage | branches for stage in config["bbox_head"]]
    reference = MODELS.build(ConfigDict(config | {"test_cfg": head.test_cfg})).eval()
    for mine, theirs in zip(head.bbox_head, reference.bbox_head, strict=True):
        for task in ("cls", "reg"):
            for number in (0, 1):
                getattr(theirs, f"{task}_fcs")[number].load_state_dict(
                    getattr(mine, f"{task}_fcs")[2 * number].state_dict()
                )
            getattr(theirs, f"fc_{task}").load_state_dict(getattr(mine, f"fc_{task}").state_dict())
    with torch.no_grad():
        found = head.predict(pyramid(), proposals(15, 8), samples(*TWO))
        expected = reference.predict(pyramid(), proposals(15, 8), samples(*TWO))
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine.bboxes) == len(theirs.bboxes) > 0
        torch.testing.assert_close(mine.bboxes, theirs.bboxes)
        torch.testing.assert_close(mine.scores, theirs.scores)


def test_the_next_stage_starts_from_the_derived_proposal(settings):
    head = roi_head(settings).eval()
    for layer in (head.bbox_head[0].delta["reg"][-1], head.bbox_head[0].fc_reg):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.constant_(head.bbox_head[0].delta["reg"][-1].bias, 2.0)  # ΔR = 2γ of the sides, and no regression
    rois = torch.tensor([[0.0, 10.0, 10.0, 30.0, 20.0]])
    with torch.no_grad():
        head.num_stages = 2
        head.bbox_head = head.bbox_head[:2]
        last, _, _ = head.run_stages(pyramid(), rois, [1, 0], [META, META])
    torch.testing.assert_close(last, torch.tensor([[0.0, 14.0, 12.0, 34.0, 22.0]]))


def test_no_gradient_crosses_from_a_stage_to_the_one_before(settings):
    head = roi_head(settings)
    losses = head.loss(pyramid(), proposals(20, 20), samples(*TWO))
    sum(value for name, value in losses.items() if name.startswith("s1.loss")).backward()
    assert all(value.grad is None for value in head.bbox_head[0].parameters())


def test_a_picture_without_proposals_and_a_batch_without_any(settings):
    head = roi_head(settings).eval()
    with torch.no_grad():
        some = head.predict(pyramid(), proposals(5, 0), samples(*TWO))
        none = head.predict(pyramid(), proposals(0, 0), samples(*TWO))
    assert len(some[0].bboxes) > 0
    assert len(some[1].bboxes) == len(none[0].bboxes) == len(none[1].bboxes) == 0


def test_proposals_of_the_last_stage_are_kept_on_demand(settings):
    head = roi_head(settings).eval()
    head.test_cfg.keep_proposals = True
    with torch.no_grad():
        found = head.predict(pyramid(), proposals(5, 5), samples(*TWO))[0]
    assert found.proposals.shape == found.reg_proposals.shape == found.bboxes.shape
    assert found.cls_points.shape == (len(found.bboxes), 7, 7, 2)


def test_a_picture_without_ground_truth_still_trains(settings):
    head = roi_head(settings)
    losses = head.loss(pyramid(), proposals(20, 20), samples([], []))
    total = sum(value for name, value in losses.items() if "loss" in name)
    assert torch.isfinite(total)
    total.backward()
    assert all(value.grad is not None for value in head.parameters())
