"""Deformable RoI pooling over a feature pyramid, all levels in one call (Eq. 6 of the paper).

Each RoI is divided into P × P cells; every cell is the mean of ``sampling_ratio``² bilinear samples, as in RoIAlign
(``aligned=True``), and all samples of a cell are moved by that cell's offset, in units of ``gamma`` × RoI size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tsd.ops.backends import choose_backend


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
    backend: str = "auto",
) -> Tensor:
    """Pool RoIs from the pyramid level that their own size chooses, with a shift for every cell.

    With ``offset=None`` the result is RoIAlign's (``aligned=True``); with one offset for all cells it is RoIAlign's
    of the RoI translated by ``gamma * offset * (w, h)``, on the level of the RoI itself. Gradients flow to features
    and offset, not to the RoIs. Several poolings from the same maps cost less through one :class:`FeaturePyramid`.

    Args:
        features: one (B, C, H_l, W_l) map per level.
        rois: (K, 5): picture in the batch, then x1, y1, x2, y2 in pixels of the padded picture. K may be 0.
        offset: (K, 2, P, P), x shifts then y shifts as fractions of ``gamma`` × RoI width and height; or None.
        strides: pixels per feature cell of each level.
        output_size: P.
        sampling_ratio: samples per cell and axis; 0 takes ceil(RoI size / P), as RoIAlign does.
        gamma: scale of the offsets (γ of Eq. 3 and 5; the released code has 0.1).
        finest_scale: RoIs whose √area is below twice this are pooled from the first level.
        backend: one of :data:`tsd.ops.BACKENDS`, see there.

    Returns:
        (K, C, P, P), of the features' dtype.

    Raises:
        ValueError: shapes, devices, picture numbers or backend do not fit.
        RuntimeError: the backend can't run here; the message says why.
    """
    pyramid = FeaturePyramid(features, strides, finest_scale=finest_scale, backend=backend)
    return pyramid.pool(rois, offset, output_size=output_size, sampling_ratio=sampling_ratio, gamma=gamma)


class FeaturePyramid:
    """The maps of a pyramid, laid out once so that any number of poolings share the work.

    Args:
        features: see :func:`deform_roi_pool`.
        strides: see :func:`deform_roi_pool`.
        finest_scale: see :func:`deform_roi_pool`.
        backend: see :func:`deform_roi_pool`.

    Raises:
        ValueError: the maps do not fit each other or the strides, or the backend's name is wrong.
        RuntimeError: the backend can't run here.
    """

    def __init__(
        self, features: Sequence[Tensor], strides: Sequence[int], *, finest_scale: float = 56, backend: str = "auto"
    ) -> None:
        _check_features(features, strides)
        self.features, self.strides, self.finest_scale = list(features), tuple(strides), finest_scale
        self.backend = choose_backend(backend, features[0].device)

    @cached_property
    def table(self) -> Tensor:
        """(Σ B · H_l · W_l, C): the feature vectors of all maps, level by level."""
        channels = self.features[0].shape[1]
        return torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, channels) for feature in self.features])

    def geometry(self, dtype: torch.dtype) -> "Geometry":
        """Where each level lies in the table; its scales in ``dtype``."""
        shapes = tuple(tuple(feature.shape) for feature in self.features)
        return _geometry(shapes, self.strides, self.features[0].device, dtype)

    def pool(
        self, rois: Tensor, offset: Tensor | None, *, output_size: int, sampling_ratio: int, gamma: float
    ) -> Tensor:
        """As :func:`deform_roi_pool`."""
        first = self.features[0]
        _check_rois(first, rois, offset, output_size, sampling_ratio)
        # Half precision holds pixel positions to within 1 in 1024 at best: geometry is never coarser than single.
        rois = rois.detach().to(torch.promote_types(first.dtype, torch.float32))
        if len(rois) == 0:
            return self._zeros(rois, offset, output_size)
        levels = map_roi_levels(rois, len(self.features), self.finest_scale)
        if self.backend == "mmcv":
            from tsd.ops.mmcv_backend import pool_by_level

            return pool_by_level(self, rois, levels, offset, output_size, sampling_ratio, gamma)
        geometry = self.geometry(rois.dtype)
        if sampling_ratio > 0:
            grid = SampleGrid(geometry, rois, levels, offset, output_size, (sampling_ratio, sampling_ratio), gamma)
            return self._pool(grid)
        return self._pool_adaptively(geometry, rois, levels, offset, output_size, gamma)

    def _pool(self, grid: "SampleGrid") -> Tensor:
        if self.backend == "triton":
            from tsd.ops.triton_backend import pool

            return pool(self.table, grid)
        index, weight = grid.corners()
        values = F.embedding_bag(index, self.table, per_sample_weights=weight.to(self.table.dtype), mode="sum")
        return values.view(len(grid.rois), grid.size, grid.size, -1).permute(0, 3, 1, 2)

    def _pool_adaptively(
        self, geometry: "Geometry", rois: Tensor, levels: Tensor, offset: Tensor | None, size: int, gamma: float
    ) -> Tensor:
        """RoIs that share their number of samples go together. The numbers are read on the host."""
        sides = torch.stack((rois[:, 4] - rois[:, 2], rois[:, 3] - rois[:, 1]), dim=1)
        sides = sides * geometry.scale[levels][:, None]
        # A NaN takes one sample, to come out as NaN.
        samples = torch.ceil(torch.where(sides.isfinite(), sides, 1) / size).long().clamp(min=0)
        groups = [(int(y), int(x)) for y, x in torch.unique(samples, dim=0).tolist()]
        if len(groups) == 1 and min(groups[0]) > 0:
            return self._pool(SampleGrid(geometry, rois, levels, offset, size, groups[0], gamma))
        pooled = self._zeros(rois, offset, size)
        for group in groups:
            if min(group) == 0:
                continue  # a RoI without extent has no samples: zeros, as in RoIAlign
            index = torch.nonzero((samples == torch.tensor(group, device=rois.device)).all(dim=1)).flatten()
            part = None if offset is None else offset[index]
            grid = SampleGrid(geometry, rois[index], levels[index], part, size, group, gamma)
            pooled = pooled.index_copy(0, index, self._pool(grid))
        return pooled

    def _zeros(self, rois: Tensor, offset: Tensor | None, size: int) -> Tensor:
        """Zeros that keep every level and the offset in the graph: no parameter is ever unused."""
        link = sum(feature.flatten()[:0].sum() for feature in self.features)
        if offset is not None:
            link = link + offset.flatten()[:0].sum()
        return self.features[0].new_zeros((len(rois), self.features[0].shape[1], size, size)) + link


def map_roi_levels(rois: Tensor, num_levels: int, finest_scale: float = 56, *, inclusive: bool = False) -> Tensor:
    """Pyramid level of each RoI: floor(log2(√area / finest_scale)), within the pyramid; (K,) int64.

    As mmdet's ``SingleRoIExtractor.map_roi_levels`` (FPN, Eq. 1). ``inclusive``: sides are x2 − x1 + 1 (mmdet 1.x).
    """
    sides = rois[:, 3:] - rois[:, 1:3] + int(inclusive)
    scale = torch.sqrt(sides[:, 0] * sides[:, 1])
    level = torch.floor(torch.log2(torch.nan_to_num(scale) / finest_scale + 1e-6))
    return level.clamp(min=0, max=num_levels - 1).long()


@dataclass(frozen=True)
class Geometry:
    """Where each level lies in the table of all feature vectors; (L,) each, on the features' device."""

    height: Tensor
    width: Tensor
    start: Tensor
    scale: Tensor


@lru_cache(maxsize=64)
def _geometry(
    shapes: tuple[tuple[int, ...], ...], strides: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Geometry:
    """Kept for shapes seen before: bringing numbers to a GPU holds up its queue."""
    starts = [0]
    for batch, _, height, width in shapes[:-1]:
        starts.append(starts[-1] + batch * height * width)
    return Geometry(
        height=torch.tensor([shape[2] for shape in shapes], device=device),
        width=torch.tensor([shape[3] for shape in shapes], device=device),
        start=torch.tensor(starts, device=device),
        scale=torch.tensor([1.0 / stride for stride in strides], device=device, dtype=dtype),
    )


@dataclass(frozen=True)
class SampleGrid:
    """Where RoIs that share their number of samples per cell are sampled.

    Attributes:
        geometry: of the pyramid.
        rois: (K, 5).
        levels: (K,).
        offset: (K, 2, P, P) or None.
        size: P.
        samples: per cell, along y and along x.
        gamma: scale of the offsets.
    """

    geometry: Geometry
    rois: Tensor
    levels: Tensor
    offset: Tensor | None
    size: int
    samples: tuple[int, int]
    gamma: float

    def corners(self) -> tuple[Tensor, Tensor]:
        """Rows of the table and their weights, (K · P · P, samples · 4) each: a cell is a weighted sum of rows.

        Rows are int64; weights have the RoIs' dtype and carry the gradient to the offset.
        """
        geometry, rois, levels, size = self.geometry, self.rois, self.levels, self.size
        (count_y, count_x), number = self.samples, len(rois)
        x1, y1, width, height = self.boxes()
        x = _grid(x1, width, size, count_x)[:, None, :, None, :]  # (K, 1, P, 1, count_x)
        y = _grid(y1, height, size, count_y)[:, :, None, :, None]  # (K, P, 1, count_y, 1)
        if self.offset is not None:
            offset = self.offset.to(rois.dtype)
            x = x + (self.gamma * width[:, None, None] * offset[:, 0])[..., None, None]  # (K, P, P, 1, count_x)
            y = y + (self.gamma * height[:, None, None] * offset[:, 1])[..., None, None]
        extent_x, extent_y = (geometry.width[levels], geometry.height[levels])
        columns, column_weights = _corners(x, extent_x.view(-1, 1, 1, 1, 1))  # (..., 2)
        rows, row_weights = _corners(y, extent_y.view(-1, 1, 1, 1, 1))
        index = rows[..., :, None] * extent_x.view(-1, 1, 1, 1, 1, 1, 1) + columns[..., None, :]
        index = index + self.base().view(-1, 1, 1, 1, 1, 1, 1)
        weight = row_weights[..., :, None] * column_weights[..., None, :] / (count_x * count_y)
        bags = number * size * size
        shape = (number, size, size, count_y, count_x, 2, 2)
        return index.expand(shape).reshape(bags, -1), weight.expand(shape).reshape(bags, -1)

    def boxes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x1, y1, width and height in cells of each RoI's level, cell centres at integers; (K,) each."""
        scale = self.geometry.scale[self.levels]
        x1, y1, x2, y2 = (self.rois[:, 1:] * scale[:, None] - 0.5).unbind(dim=1)
        return x1, y1, x2 - x1, y2 - y1

    def base(self) -> Tensor:
        """(K,) row of the table where each RoI's map begins."""
        area = self.geometry.width[self.levels] * self.geometry.height[self.levels]
        return self.geometry.start[self.levels] + self.rois[:, 0].long() * area


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


def _check_features(features: Sequence[Tensor], strides: Sequence[int]) -> None:
    if not features or len(features) != len(strides):
        raise ValueError(f"expected one stride per feature map, got {len(features)} maps and {len(strides)} strides")
    first = features[0]
    for level, feature in enumerate(features):
        if feature.dim() != 4 or feature.shape[:2] != first.shape[:2]:
            raise ValueError(f"features[{level}]: expected (B, C, H, W) of one B and C, got {tuple(feature.shape)}")
    _check_devices(features)


def _check_devices(tensors: Sequence[Tensor]) -> None:
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise ValueError(f"expected all tensors on one device, got {devices}")


def _check_rois(first: Tensor, rois: Tensor, offset: Tensor | None, size: int, sampling_ratio: int) -> None:
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois: expected (K, 5), got {tuple(rois.shape)}")
    _check_devices([first, rois] if offset is None else [first, rois, offset])
    # On other devices looking at the values would hold up the queue, so there nothing is checked.
    if rois.device.type == "cpu" and len(rois) and not bool(((rois[:, 0] >= 0) & (rois[:, 0] < len(first))).all()):
        raise ValueError(
            f"rois: expected pictures 0 to {len(first) - 1} in column 0, got {rois[:, 0].unique().tolist()}"
        )
    if offset is not None and offset.shape != (len(rois), 2, size, size):
        raise ValueError(f"offset: expected {(len(rois), 2, size, size)}, got {tuple(offset.shape)}")
    if sampling_ratio < 0 or size < 1:
        raise ValueError(f"expected output_size >= 1 and sampling_ratio >= 0, got {size} and {sampling_ratio}")
