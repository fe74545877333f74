"""mmcv's ``DeformRoIPool`` level by level, to compare with. CUDA only."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tsd.ops.deform_roi_pool import FeaturePyramid


def pool_by_level(
    pyramid: "FeaturePyramid",
    rois: Tensor,
    levels: Tensor,
    offset: Tensor | None,
    output_size: int,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """As :meth:`tsd.ops.FeaturePyramid.pool`; RoIs, offset and features all in the features' dtype, as mmcv asks."""
    from mmcv.ops import deform_roi_pool

    first = pyramid.features[0]
    pooled = first.new_zeros((len(rois), first.shape[1], output_size, output_size))
    for level, (feature, stride) in enumerate(zip(pyramid.features, pyramid.strides, strict=True)):
        index = torch.nonzero(levels == level).flatten()
        if len(index) == 0:
            pooled = pooled + feature.flatten()[:0].sum()
            continue
        shift = None if offset is None else offset[index].to(feature.dtype).contiguous()
        size = (output_size, output_size)
        own = rois[index].to(feature.dtype)
        values = deform_roi_pool(feature.contiguous(), own, shift, size, 1 / stride, sampling_ratio, gamma)
        pooled = pooled.index_copy(0, index, values)
    return pooled
