"""Overlaps in pieces: mmdet's own, to the bit."""

import pytest
import torch
from mmdet.models.task_modules import BboxOverlaps2D
from mmdet.structures.bbox import HorizontalBoxes

from tsd.models import overlaps
from tsd.models.overlaps import ChunkedOverlaps


def boxes(number, seed):
    corner = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed)) * 100
    size = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed + 1)) * 50
    return torch.cat((corner, corner + size), dim=1)


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize(("first", "second"), [(7, 11), (1, 500), (13, 1), (0, 5), (5, 0)])
@pytest.mark.parametrize("pairs", [1, 20, 2**25])
def test_in_pieces_it_is_mmdets(first, second, mode, pairs, monkeypatch):
    monkeypatch.setattr(overlaps, "PAIRS", pairs)
    a, b = boxes(first, 1), boxes(second, 2)
    expected = BboxOverlaps2D()(a, b, mode)
    assert torch.equal(ChunkedOverlaps()(a, b, mode), expected)
    assert torch.equal(ChunkedOverlaps()(HorizontalBoxes(a), HorizontalBoxes(b), mode), expected)


def test_aligned_boxes_are_not_cut():
    a, b = boxes(9, 1), boxes(9, 2)
    assert torch.equal(ChunkedOverlaps()(a, b, is_aligned=True), BboxOverlaps2D()(a, b, is_aligned=True))


def test_no_call_sees_more_pairs_than_it_should(monkeypatch):
    monkeypatch.setattr(overlaps, "PAIRS", 30)
    seen = []
    own = BboxOverlaps2D.__call__
    monkeypatch.setattr(
        BboxOverlaps2D, "__call__", lambda *args, **kwargs: seen.append(len(args[1]) * len(args[2])) or own(*args)
    )
    ChunkedOverlaps()(boxes(12, 1), boxes(10, 2))
    assert seen == [30, 30, 30, 30]
