"""mmdet's overlaps of many anchors with many objects, in pieces that fit into memory."""

import torch
from mmdet.models.task_modules import BboxOverlaps2D
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import BaseBoxes, get_box_tensor
from torch import Tensor

PAIRS = 2**25
"""Pairs of boxes at once: mmdet makes about a dozen numbers of each, 1.6 GB."""


@TASK_UTILS.register_module()
class ChunkedOverlaps(BboxOverlaps2D):
    """As :class:`BboxOverlaps2D`, to the bit; what it keeps besides the result does not grow with the boxes.

    18 anchors a position at 1333 × 800 are 1.23 million; with 300 objects mmdet's own takes about 30 GB.
    """

    def __call__(
        self, bboxes1: Tensor | BaseBoxes, bboxes2: Tensor | BaseBoxes, mode: str = "iou", is_aligned: bool = False
    ) -> Tensor:
        """(M, 4) and (N, 4) xyxy → (M, N), or (M,) if aligned."""
        first, second = get_box_tensor(bboxes1), get_box_tensor(bboxes2)
        rows = max(1, PAIRS // max(1, len(second)))
        if is_aligned or len(first) <= rows:
            return super().__call__(first, second, mode, is_aligned)
        return torch.cat([super(ChunkedOverlaps, self).__call__(part, second, mode) for part in first.split(rows)])
