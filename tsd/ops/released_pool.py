"""The released code's deformable pooling, for its checkpoints: the kernel of deformable PS-RoI pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tsd.ops.deform_roi_pool import FeaturePyramid, map_roi_levels

SMALLEST = 0.1
"""Cells: a RoI is at least this wide and high."""


def released_pool(
    pyramid: FeaturePyramid, rois: Tensor, offset: Tensor, *, output_size: int, gamma: float, samples: int = 4
) -> Tensor:
    """Pool deformed RoIs as Sense-X/TSD does (``deform_pool_cuda_kernel.cu``, ``trans_std`` being ``gamma``).

    Unlike :func:`tsd.ops.deform_roi_pool`: corners are rounded to pixels, and the far ones are inclusive; a cell's
    samples start at its corner instead of being centred; samples outside the map are left out and the mean is over the
    others. RoIs are in mmdet 1.x's coordinates, whose sides are x2 − x1 + 1.

    Args:
        pyramid: the maps.
        rois: (K, 5): picture in the batch, x1, y1, x2, y2.
        offset: (K, 2, P, P), x then y, in units of ``gamma`` × RoI size.
        output_size: P.
        gamma: scale of the offsets.
        samples: per cell and axis.

    Returns:
        (K, C, P, P), of the features' dtype; gradients flow to features and offset.
    """
    rois = rois.detach().to(torch.promote_types(pyramid.features[0].dtype, torch.float32))
    if len(rois) == 0:
        return pyramid.pool(rois, offset, output_size=output_size, sampling_ratio=1, gamma=gamma)
    levels = map_roi_levels(rois, len(pyramid.features), pyramid.finest_scale, inclusive=True)
    geometry = pyramid.geometry(rois.dtype)
    scale = geometry.scale[levels]
    corners = torch.sign(rois[:, 1:]) * torch.floor(rois[:, 1:].abs() + 0.5)  # C's round: halves away from zero
    start = corners[:, :2] * scale[:, None] - 0.5
    side = ((corners[:, 2:] + 1) * scale[:, None] - 0.5 - start).clamp(min=SMALLEST)
    steps = torch.arange(output_size * samples, device=rois.device, dtype=rois.dtype).view(output_size, samples)
    grid = start[:, :, None, None] + steps / (output_size * samples) * side[:, :, None, None]  # (K, 2, P, samples)
    shift = gamma * side[:, :, None, None] * offset.to(rois.dtype)  # (K, 2, P, P)
    x = grid[:, 0, None, :, None, :] + shift[:, 0, :, :, None, None]  # (K, P, P, 1, samples)
    y = grid[:, 1, :, None, :, None] + shift[:, 1, :, :, None, None]  # (K, P, P, samples, 1)
    width, height = geometry.width[levels], geometry.height[levels]
    columns, column_weights, inside_x = _corners(x, width.view(-1, 1, 1, 1, 1))
    rows, row_weights, inside_y = _corners(y, height.view(-1, 1, 1, 1, 1))
    inside = inside_x & inside_y  # (K, P, P, samples, samples)
    share = inside.to(rois.dtype) / inside.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    weight = row_weights[..., :, None] * column_weights[..., None, :] * share[..., None, None]
    base = geometry.start[levels] + rois[:, 0].long() * width * height
    index = rows[..., :, None] * width.view(-1, 1, 1, 1, 1, 1, 1) + columns[..., None, :]
    index = index + base.view(-1, 1, 1, 1, 1, 1, 1)
    bags = len(rois) * output_size**2
    values = F.embedding_bag(
        index.expand(weight.shape).reshape(bags, -1),
        pyramid.table,
        per_sample_weights=weight.reshape(bags, -1).to(pyramid.table.dtype),
        mode="sum",
    )
    return values.view(len(rois), output_size, output_size, -1).permute(0, 3, 1, 2)


def _corners(position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours of each position along one axis, their weights, (..., 2) each, and whether the sample counts."""
    inside = (position >= -0.5) & (position <= extent - 0.5)
    clamped = torch.minimum(position.clamp(min=0.0), (extent - 1).to(position.dtype))
    low = torch.nan_to_num(clamped.detach()).floor()
    high = torch.minimum(low + 1, (extent - 1).to(position.dtype))
    fraction = clamped - low
    return torch.stack((low, high), dim=-1).long(), torch.stack((1 - fraction, fraction), dim=-1), inside
