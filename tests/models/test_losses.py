"""The progressive constraint by numbers worked out by hand."""

import math

import pytest
import torch

from tsd.models.losses import pc_cls_loss, pc_loc_loss, progressive_hinge


def logits(*rows):
    """Logits whose softmax is exactly the given probabilities."""
    return torch.tensor([[math.log(value) for value in row] for row in rows], dtype=torch.float64)


def hinge(sibling, tsd, margin=0.2, cap=True, detach=True):
    values = [torch.tensor([value], dtype=torch.float64) for value in (sibling, tsd)]
    return progressive_hinge(*values, margin, cap, detach).item()


@pytest.mark.parametrize(
    ("sibling", "tsd", "cap", "expected"),
    [
        (0.5, 0.5, True, 0.2),  # 0.5 - 0.5 + 0.2
        (0.5, 0.6, True, 0.1),
        (0.5, 0.7, True, 0.0),  # the margin is just met
        (0.5, 0.9, True, 0.0),
        (0.9, 0.9, True, 0.1),  # at most 1 - 0.9 is asked for
        (0.9, 0.9, False, 0.2),  # the literal Eq. 7 asks for 1.1
        (0.9, 1.0, True, 0.0),
        (0.9, 1.0, False, 0.1),  # … and cannot be met
    ],
)
def test_hinge(sibling, tsd, cap, expected):
    assert hinge(sibling, tsd, cap=cap) == pytest.approx(expected)


def test_m_cls_is_the_mean_over_all_sampled_rois_with_background_for_negatives():
    sibling = logits([0.5, 0.2, 0.3], [0.1, 0.1, 0.8])
    tsd = logits([0.6, 0.2, 0.2], [0.2, 0.2, 0.6])
    labels = torch.tensor([0, 2])  # a positive of class 0 and a negative
    # positive: 0.5 - 0.6 + 0.2 = 0.1; negative: 0.8 - 0.6 + min(0.2, 1 - 0.8) = 0.4
    assert pc_cls_loss(sibling, tsd, labels, margin=0.2).item() == pytest.approx((0.1 + 0.4) / 2)
    assert pc_cls_loss(sibling, tsd, labels, margin=0.2, rois="positive").item() == pytest.approx(0.1)


def test_m_cls_of_no_rois_and_of_no_positives_is_zero_and_connected():
    tsd = torch.zeros(0, 3, requires_grad=True)
    loss = pc_cls_loss(torch.zeros(0, 3), tsd, torch.zeros(0, dtype=torch.long), margin=0.2)
    loss.backward()
    assert loss.item() == 0
    assert tsd.grad is not None
    negatives = pc_cls_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([2, 2]), margin=0.2, rois="positive")
    assert negatives.item() == 0


@pytest.mark.parametrize("detach", [True, False])
def test_m_cls_pushes_the_sibling_only_if_not_detached(detach):
    sibling, tsd = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))
    pc_cls_loss(sibling, tsd, torch.tensor([0, 1]), margin=0.2, detach=detach).backward()
    assert tsd.grad.any()
    assert (sibling.grad is not None and bool(sibling.grad.any())) is not detach


def test_m_loc_compares_ious_with_the_ground_truth():
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2)
    sibling = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 9.0]])  # IoU 0.5 and 0.9
    tsd = torch.tensor([[0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 9.0]])  # IoU 0.6 and 0.9
    # 0.5 - 0.6 + 0.2 = 0.1; 0.9 - 0.9 + min(0.2, 0.1) = 0.1
    loss = pc_loc_loss(sibling, tsd, truth, margin=0.2, normalizer=2)
    assert loss.item() == pytest.approx(0.1, abs=1e-6)
    literal = pc_loc_loss(sibling, tsd, truth, margin=0.2, cap=False, normalizer=2)
    assert literal.item() == pytest.approx((0.1 + 0.2) / 2, abs=1e-6)
    # divided by all 8 sampled RoIs instead of the 2 positives
    assert pc_loc_loss(sibling, tsd, truth, margin=0.2, normalizer=8).item() == pytest.approx(0.2 / 8, abs=1e-6)


def test_m_loc_without_positives_is_zero_and_connected():
    boxes = torch.zeros(0, 4, requires_grad=True)
    loss = pc_loc_loss(torch.zeros(0, 4), boxes, torch.zeros(0, 4), margin=0.2, normalizer=0)
    loss.backward()
    assert loss.item() == 0
    assert boxes.grad is not None
