"""mmdet 1.x's coordinates, for released checkpoints: a box's sides are x2 − x1 + 1 (``coordinates: legacy``).

What stays mmdet 3's: masks are pasted into the picture by its rule, and pictures are resized and mirrored before boxes
are turned into these coordinates.
"""

from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import LegacyDeltaXYWHBBoxCoder
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from tsd.ops import map_roi_levels


@TASK_UTILS.register_module()
class ReleasedBoxCoder(LegacyDeltaXYWHBBoxCoder):
    """mmdet 1.x's box coder: decoding is the inverse of encoding.

    mmdet 3's ``LegacyDeltaXYWHBBoxCoder`` leaves out the half pixel of mmdet 1.x's ``delta2bbox``, to suit results
    without + 1; here results are turned into COCO's by + 1, as the released code does.
    """

    def decode(
        self, bboxes: Tensor, pred_bboxes: Tensor, max_shape: Any = None, wh_ratio_clip: float = 16 / 1000
    ) -> Tensor:
        """(N, 4) boxes and (N, 4 · n) deltas → (N, 4 · n) boxes, clipped to 0 … side − 1 of ``max_shape`` (h, w)."""
        boxes = super().decode(get_box_tensor(bboxes), pred_bboxes, None, wh_ratio_clip)
        boxes = boxes + boxes.new_tensor([0.5, 0.5, -0.5, -0.5]).repeat(boxes.shape[1] // 4)
        if max_shape is None:
            return boxes
        last = boxes.new_tensor([max_shape[1] - 1, max_shape[0] - 1]).repeat(boxes.shape[1] // 2)
        return torch.minimum(boxes.clamp(min=0), last)


@TASK_UTILS.register_module()
class InclusiveOverlaps:
    """IoU of boxes whose far corners belong to them (mmdet 1.x's ``bbox_overlaps``)."""

    def __call__(self, bboxes1: Tensor, bboxes2: Tensor, mode: str = "iou", is_aligned: bool = False) -> Tensor:
        """(M, 4) and (N, 4) → (M, N), or (N,) if aligned.

        Raises:
            ValueError: another mode than ``iou`` and ``iof``.
        """
        return inclusive_overlaps(get_box_tensor(bboxes1), get_box_tensor(bboxes2), mode, is_aligned)


def inclusive_overlaps(first: Tensor, second: Tensor, mode: str = "iou", is_aligned: bool = False) -> Tensor:
    """IoU, or intersection over the first box (``iof``), with + 1 on every side; see :class:`InclusiveOverlaps`."""
    if mode not in ("iou", "iof"):
        raise ValueError(f"mode: expected iou or iof, got {mode!r}")
    a, b = (first[..., :4], second[..., :4]) if is_aligned else (first[:, None, :4], second[None, :, :4])
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + 1).clamp(min=0)
    common = sides.prod(dim=-1)
    area_a = (a[..., 2:] - a[..., :2] + 1).prod(dim=-1)
    area_b = (b[..., 2:] - b[..., :2] + 1).prod(dim=-1)
    return common / (area_a if mode == "iof" else (area_a + area_b - common))


@MODELS.register_module()
class InclusiveRoIExtractor(SingleRoIExtractor):
    """mmdet 1.x's RoI extractor: levels by sides with + 1, and its RoIAlign.

    That RoIAlign samples x1 · s … (x2 + 1) · s without moving it by half a cell, and lets it be narrower than a cell;
    this is today's (``aligned=True``) of a RoI moved by half a cell.
    """

    roi_layers: nn.ModuleList

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        today = self.roi_layers
        self.roi_layers = nn.ModuleList(
            _Shifted(layer, stride) for layer, stride in zip(today, self.featmap_strides, strict=True)
        )

    def map_roi_levels(self, rois: Tensor, num_levels: int) -> Tensor:
        """(K,) level of each RoI."""
        return map_roi_levels(rois, num_levels, self.finest_scale, inclusive=True)


class _Shifted(nn.Module):
    def __init__(self, layer: nn.Module, stride: int) -> None:
        super().__init__()
        self.layer, self.stride = layer, stride
        self.output_size = layer.output_size

    def forward(self, feature: Tensor, rois: Tensor) -> Tensor:
        half = self.stride / 2
        result: Tensor = self.layer(feature, rois + rois.new_tensor([0, half, half, 1 + half, 1 + half]))
        return result
