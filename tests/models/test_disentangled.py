"""D_s8, D_s16 and D_s32: what is shared, what is not, and which loss reaches what."""

import pytest
import torch

from tsd.models import BranchedBBoxHead, BranchedFPN, BranchedResNet, BranchRPNHead
from tsd.models.disentangled import half

RESNET = {"depth": 18, "base_channels": 8, "stem_channels": 8}
PICTURE = torch.rand(1, 3, 64, 64)


@pytest.mark.parametrize(("shared", "doubled"), [(2, ["layer3", "layer4"]), (3, ["layer4"]), (4, [])])
def test_stages_after_the_shared_ones_exist_twice(shared, doubled):
    model = BranchedResNet(shared, **RESNET)
    assert [name for name, _ in model.named_children() if name.startswith("reg_")] == [f"reg_{n}" for n in doubled]
    outputs = model.eval()(PICTURE)
    assert len(outputs) == 8
    for level, (first, second) in enumerate(zip(half(outputs, "cls"), half(outputs, "reg"), strict=True)):
        assert first.shape == second.shape == (1, 8 * 2**level, 16 // 2**level, 16 // 2**level)
        assert (first is second) == (level < shared)


def test_a_loss_of_one_branch_leaves_the_others_stages_alone():
    model = BranchedResNet(2, norm_eval=False, **RESNET)
    sum(level.sum() for level in half(model(PICTURE), "reg")).backward()
    assert model.layer2[0].conv1.weight.grad is not None
    assert model.reg_layer3[0].conv1.weight.grad is not None
    assert all(value.grad is None for value in [*model.layer3.parameters(), *model.layer4.parameters()])


def test_plain_weights_start_both_branches():
    from mmdet.models.backbones import ResNet

    torch.manual_seed(0)
    plain, branched = ResNet(**RESNET), BranchedResNet(2, **RESNET).eval()
    plain.eval()
    branched.load_state_dict(branched.state_dict_from_plain(plain.state_dict()), strict=True)
    outputs = branched(PICTURE)
    for branch in ("cls", "reg"):
        for first, second in zip(plain(PICTURE), half(outputs, branch), strict=True):
            assert torch.equal(first, second)


def test_frozen_stages_are_frozen_in_both_branches():
    model = BranchedResNet(2, frozen_stages=3, norm_eval=False, **RESNET).train()
    assert not any(value.requires_grad for value in [*model.layer3.parameters(), *model.reg_layer3.parameters()])
    assert all(value.requires_grad for value in [*model.layer4.parameters(), *model.reg_layer4.parameters()])


def test_each_branch_has_an_fpn_of_its_own():
    neck = BranchedFPN(in_channels=[8, 16], out_channels=4, num_outs=3)
    maps = (torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4))
    pyramids = neck((*maps, *maps))
    assert [tuple(level.shape[1:]) for level in half(pyramids, "reg")] == [(4, 8, 8), (4, 4, 4), (4, 2, 2)]
    sum(level.sum() for level in half(pyramids, "cls")).backward()
    assert all(value.grad is None for value in neck.branches["reg"].parameters())


@pytest.mark.parametrize("branch", ["cls", "reg"])
def test_the_rpn_sees_one_branch(branch):
    head = BranchRPNHead(in_channels=4, feat_channels=4, branch=branch)
    torch.manual_seed(0)
    one, other = [tuple(torch.rand(1, 4, size, size) for size in (8, 4)) for _ in range(2)]
    maps = (*one, *other) if branch == "cls" else (*other, *one)
    scores, _ = head(maps)
    changed, _ = head(tuple(level if any(level is mine for mine in one) else level + 1 for level in maps))
    assert len(scores) == 2
    assert all(torch.equal(first, second) for first, second in zip(scores, changed, strict=True))
    with pytest.raises(ValueError, match="branch: expected one of cls, reg"):
        BranchRPNHead(in_channels=4, branch="box")


def test_the_head_keeps_the_tasks_apart():
    head = BranchedBBoxHead(in_channels=4, fc_out_channels=8, roi_feat_size=7, num_classes=3)
    head.init_weights()
    cls_features, reg_features = (torch.rand(5, 4, 7, 7, requires_grad=True) for _ in range(2))
    scores, deltas = head(cls_features, reg_features)
    assert scores.shape == (5, 4)
    assert deltas.shape == (5, 12)
    scores.sum().backward()
    assert reg_features.grad is None
    assert cls_features.grad.abs().sum() > 0


@pytest.mark.parametrize("shared", [0, 5])
def test_sharing_no_or_too_many_stages_is_refused(shared):
    with pytest.raises(ValueError, match="shared_stages: expected 1 to 4"):
        BranchedResNet(shared, **RESNET)
    with pytest.raises(ValueError, match="out_indices: expected all 4 stages"):
        BranchedResNet(2, out_indices=(0, 1), **RESNET)
