"""The TSD head: shapes, parameters, gradients and losses, worked out by hand where numbers appear."""

from functools import partial

import pytest
import torch
from mmdet.models.task_modules.samplers import SamplingResult

from tsd.models import TSDBBoxHead
from tsd.models.recipes import RECIPES, recipe_defaults
from tsd.ops import deform_roi_pool

C, P, CLASSES = 4, 7, 3


def make_head(**options):
    torch.manual_seed(0)
    arguments = {"in_channels": C, "roi_feat_size": P, "num_classes": CLASSES, "fc_out_channels": 16}
    arguments |= {
        "delta_channels": 8,
        "bbox_coder": {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0] * 4,
            "target_stds": [0.1, 0.1, 0.2, 0.2],
        },
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
    }
    head = TSDBBoxHead(**(arguments | options))
    head.init_weights()
    return head.double()


def sampled(positives, negatives, truth, labels):
    """mmdet's sampling result of one picture: positives first, matched in order to ``truth``."""
    priors = torch.tensor([*positives, *negatives], dtype=torch.float64).view(-1, 4)
    boxes = torch.tensor(truth, dtype=torch.float64).view(-1, 4)
    gt = torch.arange(1, len(positives) + 1)

    class Assigned:
        gt_inds = torch.cat((gt, torch.zeros(len(negatives), dtype=torch.long)))
        num_gts = len(positives)
        labels_ = torch.tensor(labels)

    assigned = Assigned()
    assigned.labels = torch.cat((torch.tensor(labels, dtype=torch.long), torch.full((len(negatives),), CLASSES)))
    return SamplingResult(
        torch.arange(len(positives)),
        torch.arange(len(positives), len(priors)),
        priors,
        boxes,
        assigned,
        torch.zeros(len(priors), dtype=torch.uint8),
    )


def run(head, results, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [
        torch.randn(len(results), C, 32 // 2**level, 32 // 2**level, dtype=torch.float64, generator=generator)
        for level in range(4)
    ]
    features = [feature.requires_grad_() for feature in features]
    rois = torch.cat(
        [torch.cat((torch.full((len(r.priors), 1), i).double(), r.priors), dim=1) for i, r in enumerate(results)]
    )
    pool = partial(
        deform_roi_pool,
        features,
        rois,
        strides=[4, 8, 16, 32],
        output_size=P,
        sampling_ratio=2,
        gamma=head.gamma,
    )
    head.train()
    output = head(pool(None), rois, pool)
    return features, rois, output


TRAIN = {"pos_weight": -1}
ONE = sampled([[10, 10, 50, 50]], [[60, 60, 100, 110], [0, 0, 30, 20]], [[12, 8, 52, 54]], [1])


class Config(dict):
    __getattr__ = dict.__getitem__


def losses_of(head, results):
    features, rois, output = run(head, results)
    return features, rois, output, head.losses(output, rois, results, head.get_targets(results, Config(TRAIN)))


def test_parameter_counts_are_those_of_the_released_head_at_paper_size():
    head = make_head(in_channels=256, num_classes=80, fc_out_channels=1024, delta_channels=256)
    total = sum(parameter.numel() for parameter in head.parameters())
    sibling = sum(p.numel() for name, p in head.named_parameters() if name.startswith("sibling"))
    delta = sum(p.numel() for name, p in head.named_parameters() if name.startswith("delta"))
    assert delta == 3_368_804
    assert sibling == 14_306_705
    assert total == 45_877_894
    assert total - sibling == 31_571_189


def test_without_joint_training_there_is_no_sibling_and_no_unused_parameter():
    head = make_head(joint_sibling=False, pc_cls=False, pc_loc=False)
    assert not any("sibling" in name for name, _ in head.named_parameters())
    _, _, output, losses = losses_of(head, [ONE])
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert output.sibling_cls is None
    assert set(losses) == {"loss_tsd_cls", "loss_tsd_bbox", "tsd_acc"}
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_all_losses_have_names_and_every_parameter_a_gradient():
    head = make_head()
    _, _, _, losses = losses_of(head, [ONE])
    named = {name for name in losses if name.startswith("loss")}
    assert named == {"loss_cls", "loss_bbox", "loss_tsd_cls", "loss_tsd_bbox", "loss_pc_cls", "loss_pc_loc"}
    sum(losses[name] for name in named).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_the_sibling_is_not_run_at_test_time():
    head = make_head()
    head.eval()
    x = torch.zeros(2, C, P, P, dtype=torch.float64)
    rois = torch.tensor([[0, 0, 0, 10, 20]] * 2, dtype=torch.float64)
    output = head(x, rois, lambda offset: x)
    assert output.sibling_cls is None
    assert output.cls_score.shape == (2, CLASSES + 1)
    assert output.bbox_pred.shape == (2, 4 * CLASSES)


def test_p_r_is_p_translated_by_gamma_times_delta_times_size():
    head = make_head()
    rois = torch.tensor([[0, 10, 20, 50, 100]], dtype=torch.float64)  # 40 wide, 80 high
    offset = torch.tensor([2.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, P, P)
    # 0.1 · 2 · 40 = 8 to the right, 0.1 · 1 · 80 = 8 up
    assert head._translate(rois, offset).tolist() == [[0, 18, 12, 58, 92]]


def test_points_of_p_c_are_cell_centres_moved_by_their_own_offset():
    head = make_head()
    rois = torch.tensor([[0, 0, 0, 70, 140]], dtype=torch.float64)
    offset = torch.zeros(1, 2, P, P, dtype=torch.float64)
    offset[0, 0, 0, 6] = 1.0  # x of the first row's last cell
    points = head.cls_points(rois, offset)
    assert points[0, 0, 0].tolist() == pytest.approx([5, 10])
    assert points[0, 0, 6].tolist() == pytest.approx([65 + 7, 10])
    assert points[0, 6, 0].tolist() == pytest.approx([5, 130])


def test_classification_is_averaged_over_the_sampled_rois_and_boxes_are_divided_by_them():
    head = make_head(pc_cls=False, pc_loc=False)
    _, rois, output, losses = losses_of(head, [ONE])
    labels = torch.tensor([1, CLASSES, CLASSES])
    expected = torch.nn.functional.cross_entropy(output.cls_score, labels)
    assert losses["loss_tsd_cls"].item() == pytest.approx(expected.item())
    # target of P̂r by hand: centre differences over size over 0.1, log size ratios over 0.2
    x1, y1, x2, y2 = output.reg_rois[0, 1:].tolist()
    target = torch.tensor(
        [
            (32 - (x1 + x2) / 2) / 40 / 0.1,
            (31 - (y1 + y2) / 2) / 40 / 0.1,
            0.0,
            float(torch.log(torch.tensor(46 / 40))) / 0.2,
        ],
        dtype=torch.float64,
    )
    predicted = output.bbox_pred.view(3, CLASSES, 4)[0, 1]
    expected = torch.nn.functional.smooth_l1_loss(predicted, target, reduction="sum", beta=1.0) / 3
    assert losses["loss_tsd_bbox"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(rois) == 3


def delta_gradient(head, name):
    _, _, _, losses = losses_of(head, [ONE])
    head.zero_grad()
    losses[name].backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in head.named_parameters()}


@pytest.mark.parametrize(("pr_grad", "expected"), [("pooling", False), ("all", True)])
def test_where_p_r_carries_gradient(pr_grad, expected):
    """With the pooling cut off, only `all` (released code) teaches ΔR through the targets."""
    head = make_head(pr_grad=pr_grad)
    _, rois, output = run(head, [ONE])
    offset = torch.zeros(len(rois), 2, dtype=torch.float64, requires_grad=True)
    output.reg_rois = head._translate(rois, offset[:, :, None, None].expand(-1, -1, P, P))
    predicted = output.bbox_pred.detach().requires_grad_()
    output.bbox_pred = predicted
    head.losses(output, rois, [ONE], head.get_targets([ONE], Config(TRAIN)))["loss_tsd_bbox"].backward()
    if not expected:
        assert offset.grad is None
        return
    # d target_x / d offset_x = -γ/σ = -1: the offset learns what the predicted dx of the class learns.
    own = predicted.grad.view(3, CLASSES, 4)[0, 1, :2]
    torch.testing.assert_close(offset.grad[0], own)
    assert not offset.grad[1:].any()


def test_pc_teaches_tsd_and_not_the_sibling():
    head = make_head()
    for name in ("loss_pc_cls", "loss_pc_loc"):
        gradients = delta_gradient(head, name)
        assert not any(g is not None and g.any() for key, g in gradients.items() if key.startswith("sibling"))
        assert any(g is not None and g.any() for key, g in gradients.items() if key.startswith(("cls_", "reg_", "fc_")))


def test_a_picture_without_positives_and_one_without_rois_are_fine():
    empty = sampled([], [], [], [])
    negatives = sampled([], [[0, 0, 20, 20]], [], [])
    for results in ([negatives], [negatives, ONE], [empty], [empty, ONE]):
        head = make_head()
        _, _, _, losses = losses_of(head, results)
        total = sum(value.sum() for name, value in losses.items() if "loss" in name)
        total.backward()
        assert torch.isfinite(total)
        assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("cls_proposal", ["shared", "pointwise", "proposalwise"])
@pytest.mark.parametrize("reg_proposal", ["shared", "pointwise", "proposalwise"])
def test_every_manner_of_learning_proposals_trains(cls_proposal, reg_proposal):
    head = make_head(cls_proposal=cls_proposal, reg_proposal=reg_proposal)
    _, rois, output, losses = losses_of(head, [ONE])
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert torch.equal(output.reg_rois, rois) is (reg_proposal != "proposalwise")
    assert (output.cls_offset is None) is (cls_proposal == "shared")


def test_the_recipes_differ_where_paper_and_code_do():
    paper, released = recipe_defaults("paper"), recipe_defaults("released")
    assert {key for key in paper if paper[key] != released[key]} == {"margin_cls", "margin_loc"}
    assert paper["pr_grad"] == "all"
    assert make_head(recipe="released").margin_cls == 0.3
    assert make_head(recipe="released", margin_cls=0.5).margin_cls == 0.5
    assert set(RECIPES) == {"paper", "released"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "mine"}, "recipe: expected one of paper, released"),
        ({"pr_grad": "some"}, "pr_grad: expected one of"),
        ({"cls_proposal": "points"}, "cls_proposal: expected one of"),
        ({"joint_sibling": False}, "need joint_sibling=True"),
        ({"reg_decoded_bbox": True}, "reg_decoded_bbox: expected False"),
        ({"with_avg_pool": True}, "with_avg_pool: expected False"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_head(**options)
