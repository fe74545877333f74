"""Deformable RoI pooling over a feature pyramid, all levels in one call (Eq. 6 of the paper).

Each RoI is divided into P × P cells; every cell is the mean of ``sampling_ratio``² bilinear samples, as in RoIAlign
(``aligned=True``), and all samples of a cell are moved by that cell's offset, in units of ``gamma`` × RoI size.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKENDS = ("torch",)
"""``torch`` runs on any device and is the reference."""


def deform_roi_pool(
    features: Sequence[Tensor],
    rois: Tensor,
    offset: Tensor | None,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    gamma: float,
    finest_scale: float = 56,
    backend: str = "torch",
) -> Tensor:
    """Pool RoIs from the pyramid level that their own size chooses, with a shift for every cell.

    With ``offset=None`` the result is RoIAlign's (``aligned=True``); with one offset for all cells it is RoIAlign's
    of the RoI translated by ``gamma * offset * (w, h)``, on the level of the RoI itself. Gradients flow to features
    and offset, not to the RoIs.

    Args:
        features: one (B, C, H_l, W_l) map per level.
        rois: (K, 5): picture in the batch, then x1, y1, x2, y2 in pixels of the padded picture. K may be 0.
        offset: (K, 2, P, P), x shifts then y shifts as fractions of ``gamma`` × RoI width and height; or None.
        strides: pixels per feature cell of each level.
        output_size: P.
        sampling_ratio: samples per cell and axis; 0 takes ceil(RoI size / P), as RoIAlign does.
        gamma: scale of the offsets (γ of Eq. 3 and 5; the released code has 0.1).
        finest_scale: RoIs whose √area is below twice this are pooled from the first level.
        backend: one of :data:`BACKENDS`.

    Returns:
        (K, C, P, P), of the features' dtype.

    Raises:
        ValueError: shapes, devices, picture numbers or backend do not fit.
    """
    _check(features, rois, offset, strides, output_size, sampling_ratio, backend)
    # Half precision holds pixel positions to within 1 in 1024 at best: geometry is never coarser than single.
    rois = rois.detach().to(torch.promote_types(features[0].dtype, torch.float32))
    levels = map_roi_levels(rois, len(features), finest_scale)
    if sampling_ratio > 0:
        samples = torch.full((len(rois), 2), sampling_ratio, dtype=torch.long, device=rois.device)
        groups = [(sampling_ratio, sampling_ratio)] if len(rois) else []
    else:
        scale = torch.as_tensor(strides, device=rois.device)[levels].to(rois.dtype)[:, None]
        sizes = torch.stack((rois[:, 4] - rois[:, 2], rois[:, 3] - rois[:, 1]), dim=1) / scale
        # A NaN takes one sample, to come out as NaN.
        samples = torch.ceil(torch.where(sizes.isfinite(), sizes, 1) / output_size).long().clamp(min=0)
        groups = [(int(a), int(b)) for a, b in torch.unique(samples, dim=0).tolist()]
    channels = features[0].shape[1]
    # Of zero size, but it keeps every level and the offset in the graph: no parameter is ever unused.
    link = sum(feature.flatten()[:0].sum() for feature in features)
    if offset is not None:
        link = link + offset.flatten()[:0].sum()
    pooled = features[0].new_zeros((len(rois), channels, output_size, output_size)) + link
    if not groups:
        return pooled
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in features])
    geometry = _Geometry(features, strides, rois.dtype)
    if len(groups) == 1 and min(groups[0]) > 0:
        return _pool(table, geometry, rois, levels, offset, output_size, groups[0], gamma) + link
    for group in groups:
        if min(group) == 0:
            continue  # a RoI without extent has no samples: zeros, as in RoIAlign
        index = torch.nonzero((samples == torch.tensor(group, device=rois.device)).all(dim=1)).flatten()
        part = None if offset is None else offset[index]
        values = _pool(table, geometry, rois[index], levels[index], part, output_size, group, gamma)
        pooled = pooled.index_copy(0, index, values)
    return pooled


class DeformRoIPool(nn.Module):
    """:func:`deform_roi_pool` as a module, with its keyword arguments fixed."""

    def __init__(
        self,
        strides: Sequence[int],
        output_size: int,
        sampling_ratio: int,
        gamma: float,
        finest_scale: float = 56,
        backend: str = "torch",
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "strides": tuple(strides),
            "output_size": output_size,
            "sampling_ratio": sampling_ratio,
            "gamma": gamma,
            "finest_scale": finest_scale,
            "backend": backend,
        }

    def forward(self, features: Sequence[Tensor], rois: Tensor, offset: Tensor | None = None) -> Tensor:
        """Pool ``rois`` (K, 5) with ``offset`` (K, 2, P, P) or None; (K, C, P, P)."""
        return deform_roi_pool(features, rois, offset, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def map_roi_levels(rois: Tensor, num_levels: int, finest_scale: float = 56) -> Tensor:
    """Pyramid level of each RoI: floor(log2(√area / finest_scale)), within the pyramid; (K,) int64.

    As mmdet's ``SingleRoIExtractor.map_roi_levels`` (FPN, Eq. 1).
    """
    scale = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    level = torch.floor(torch.log2(torch.nan_to_num(scale) / finest_scale + 1e-6))
    return level.clamp(min=0, max=num_levels - 1).long()


class _Geometry:
    """Where each level lies in the table of all feature vectors."""

    def __init__(self, features: Sequence[Tensor], strides: Sequence[int], dtype: torch.dtype) -> None:
        first = features[0]
        heights, widths = [f.shape[2] for f in features], [f.shape[3] for f in features]
        starts = [0]
        for feature in features[:-1]:
            starts.append(starts[-1] + feature.shape[0] * feature.shape[2] * feature.shape[3])
        self.height = torch.tensor(heights, device=first.device)
        self.width = torch.tensor(widths, device=first.device)
        self.start = torch.tensor(starts, device=first.device)
        self.scale = torch.tensor([1.0 / stride for stride in strides], device=first.device, dtype=dtype)


def _pool(
    table: Tensor,
    geometry: _Geometry,
    rois: Tensor,
    levels: Tensor,
    offset: Tensor | None,
    size: int,
    samples: tuple[int, int],
    gamma: float,
) -> Tensor:
    """Pool RoIs that share the number of samples per cell; (K, C, P, P).

    Every cell is one bag of weighted rows of ``table``: four corners for each sample.
    """
    (count_y, count_x), number = samples, len(rois)
    scale = geometry.scale[levels]
    x1, y1, x2, y2 = (rois[:, 1:] * scale[:, None] - 0.5).unbind(dim=1)
    width, height = x2 - x1, y2 - y1
    x = _grid(x1, width, size, count_x)[:, None, :, None, :]  # (K, 1, P, 1, count_x)
    y = _grid(y1, height, size, count_y)[:, :, None, :, None]  # (K, P, 1, count_y, 1)
    if offset is not None:
        offset = offset.to(rois.dtype)
        x = x + (gamma * width[:, None, None] * offset[:, 0])[..., None, None]  # (K, P, P, 1, count_x)
        y = y + (gamma * height[:, None, None] * offset[:, 1])[..., None, None]
    extent_x, extent_y = (geometry.width[levels], geometry.height[levels])
    columns, column_weights = _corners(x, extent_x.view(-1, 1, 1, 1, 1))  # (..., 2)
    rows, row_weights = _corners(y, extent_y.view(-1, 1, 1, 1, 1))
    base = geometry.start[levels] + rois[:, 0].long() * extent_x * extent_y
    index = rows[..., :, None] * extent_x.view(-1, 1, 1, 1, 1, 1, 1) + columns[..., None, :]
    index = index + base.view(-1, 1, 1, 1, 1, 1, 1)
    weight = row_weights[..., :, None] * column_weights[..., None, :] / (count_x * count_y)
    bags = number * size * size
    shape = (number, size, size, count_y, count_x, 2, 2)
    values = F.embedding_bag(
        index.expand(shape).reshape(bags, -1),
        table,
        per_sample_weights=weight.expand(shape).reshape(bags, -1).to(table.dtype),
        mode="sum",
    )
    return values.view(number, size, size, -1).permute(0, 3, 1, 2)


def _grid(start: Tensor, extent: Tensor, size: int, count: int) -> Tensor:
    """Sample positions along one axis: ``count`` centred in each of ``size`` cells; (K, size, count)."""
    cell = torch.arange(size, device=start.device, dtype=start.dtype)[:, None]
    sample = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None, None] + (cell + sample) * (extent / size)[:, None, None]


def _corners(position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """The two neighbours of each position along one axis and their weights, (..., 2) each.

    RoIAlign's border rule: beyond one cell outside the map a sample counts as zero, nearer ones are clamped.
    """
    valid = (position >= -1.0) & (position <= extent)
    last = (extent - 1).to(position.dtype)
    clamped = torch.minimum(position.clamp(min=0.0), last)
    # A NaN must reach the loss through the weights, not break the lookup.
    low = torch.nan_to_num(clamped.detach()).floor()
    high = torch.minimum(low + 1, last)
    fraction = clamped - low
    weights = torch.stack((1 - fraction, fraction), dim=-1) * valid[..., None]
    return torch.stack((low, high), dim=-1).long(), weights


def _check(
    features: Sequence[Tensor],
    rois: Tensor,
    offset: Tensor | None,
    strides: Sequence[int],
    size: int,
    sampling_ratio: int,
    backend: str,
) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if not features or len(features) != len(strides):
        raise ValueError(f"expected one stride per feature map, got {len(features)} maps and {len(strides)} strides")
    first = features[0]
    for level, feature in enumerate(features):
        if feature.dim() != 4 or feature.shape[:2] != first.shape[:2]:
            raise ValueError(f"features[{level}]: expected (B, C, H, W) of one B and C, got {tuple(feature.shape)}")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois: expected (K, 5), got {tuple(rois.shape)}")
    tensors = [*features, rois] if offset is None else [*features, rois, offset]
    if len({tensor.device for tensor in tensors}) > 1:
        raise ValueError(f"expected all tensors on one device, got {sorted({str(t.device) for t in tensors})}")
    # On other devices looking at the values would hold up the queue, so there nothing is checked.
    if rois.device.type == "cpu" and len(rois) and not bool(((rois[:, 0] >= 0) & (rois[:, 0] < len(first))).all()):
        raise ValueError(
            f"rois: expected pictures 0 to {len(first) - 1} in column 0, got {rois[:, 0].unique().tolist()}"
        )
    if offset is not None and offset.shape != (len(rois), 2, size, size):
        raise ValueError(f"offset: expected {(len(rois), 2, size, size)}, got {tuple(offset.shape)}")
    if sampling_ratio < 0 or size < 1:
        raise ValueError(f"expected output_size >= 1 and sampling_ratio >= 0, got {size} and {sampling_ratio}")
