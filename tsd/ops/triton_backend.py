"""The pooling as Triton kernels: one launch for all RoIs of all levels, forward and backward.

Features may be of any floating type; positions and sums are single precision, double where the features are. One
program owns one cell and reads whole feature vectors, which lie together in the table. The gradient of an offset is a
sum over channels inside its cell's program. The gradient of the features is added with atomics, or, where
``torch.use_deterministic_algorithms(True)`` asks for it, summed in a fixed order by one program for each row.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tsd.ops.deform_roi_pool import SampleGrid

MAX_BLOCK = 256
"""Channels that one program holds at a time."""


def pool(table: Tensor, grid: SampleGrid) -> Tensor:
    """Pool RoIs from the table of feature vectors.

    Args:
        table: (rows, C) of :class:`tsd.ops.FeaturePyramid`.
        grid: where to sample.

    Returns:
        (K, C, P, P), of the table's dtype; gradients flow to the table and to ``grid.offset``.
    """
    values = _Pool.apply(table, grid.offset, grid)
    return values.view(len(grid.rois), grid.size, grid.size, -1).permute(0, 3, 1, 2)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, offset: Tensor | None, grid: SampleGrid) -> Tensor:
        table = table.contiguous()
        shift = None if offset is None else offset.to(grid.rois.dtype).contiguous()
        boxes = _boxes(grid)
        cells, channels = len(grid.rois) * grid.size**2, table.shape[1]
        values = table.new_empty((cells, channels))
        block = _block(channels)
        _forward[(cells, triton.cdiv(channels, block))](
            table, values, *boxes, table if shift is None else shift, **_options(grid), C=channels, BLOCK=block
        )
        ctx.save_for_backward(table, shift, *boxes)
        ctx.grid, ctx.offset_dtype = grid, None if offset is None else offset.dtype
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table, shift, *boxes = ctx.saved_tensors
        grid: SampleGrid = ctx.grid
        gradient = gradient.contiguous()
        needs_table, needs_offset = ctx.needs_input_grad[:2]
        atomic = needs_table and not torch.are_deterministic_algorithms_enabled()
        channels = table.shape[1]
        block = _block(channels)
        table_gradient = torch.zeros_like(table, dtype=grid.rois.dtype) if atomic else None
        offset_gradient = torch.empty_like(shift) if needs_offset else None
        if atomic or needs_offset:
            _backward[(len(gradient),)](
                table,
                gradient,
                gradient if table_gradient is None else table_gradient,
                gradient if offset_gradient is None else offset_gradient,
                *boxes,
                table if shift is None else shift,
                **_options(grid),
                C=channels,
                BLOCK=block,
                TO_TABLE=atomic,
                TO_OFFSET=needs_offset,
            )
        if needs_table and not atomic:
            table_gradient = _sum_by_row(gradient, grid, len(table), block)
        return (
            None if table_gradient is None else table_gradient.to(table.dtype),
            None if offset_gradient is None else offset_gradient.to(ctx.offset_dtype),
            None,
        )


def _boxes(grid: SampleGrid) -> tuple[Tensor, ...]:
    """x1, y1, width, height in cells, height and width of the map, its first row in the table; (K,) each."""
    dtype = grid.rois.dtype
    heights, widths = grid.geometry.height[grid.levels].to(dtype), grid.geometry.width[grid.levels].to(dtype)
    return *(side.contiguous() for side in grid.boxes()), heights, widths, grid.base()


def _options(grid: SampleGrid) -> dict[str, Any]:
    return {
        "GAMMA": grid.gamma,
        "P": grid.size,
        "SY": grid.samples[0],
        "SX": grid.samples[1],
        "SHIFTED": grid.offset is not None,
        "REAL": tl.float64 if grid.rois.dtype == torch.float64 else tl.float32,
    }


def _block(channels: int) -> int:
    return min(triton.next_power_of_2(channels), MAX_BLOCK)


def _sum_by_row(gradient: Tensor, grid: SampleGrid, rows: int, block: int) -> Tensor:
    """Gradient of the table, (rows, C), each row summed in the order of the cells."""
    index, weight = (part.detach() for part in grid.corners())
    entries = index.shape[1]
    ordered, order = index.flatten().sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(rows + 1, device=ordered.device))
    result = gradient.new_empty((rows, gradient.shape[1]), dtype=grid.rois.dtype)
    _rows[(rows, triton.cdiv(gradient.shape[1], block))](
        gradient, weight.flatten(), order, bounds, result, E=entries, C=gradient.shape[1], BLOCK=block
    )
    return result


@triton.jit
def _axis(position, extent):
    """Both neighbours of a position, the weight of the upper one, whether it counts, and whether it was not clamped."""
    last = extent - 1
    counts = (position >= -1.0) & (position <= extent)
    inside = (position >= 0.0) & (position <= last)
    clamped = tl.minimum(tl.maximum(position, 0.0), last)
    clamped = tl.where(position == position, clamped, position)  # a NaN stays one
    low = tl.floor(tl.where(clamped == clamped, clamped, 0.0))
    high = tl.minimum(low + 1, last)
    return low.to(tl.int64), high.to(tl.int64), clamped - low, tl.where(counts, 1.0, 0.0), tl.where(inside, 1.0, 0.0)


@triton.jit
def _shifts(
    offset, k, row, column, width, height,
    GAMMA: tl.constexpr, P: tl.constexpr, SHIFTED: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    if SHIFTED:
        place = k * 2 * P * P + row * P + column
        return GAMMA * width * tl.load(offset + place), GAMMA * height * tl.load(offset + place + P * P)
    return tl.zeros((), REAL), tl.zeros((), REAL)


@triton.jit
def _forward(
    table, out, x1s, y1s, ws, hs, map_hs, map_ws, bases, offset,
    GAMMA: tl.constexpr, P: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, SHIFTED: tl.constexpr, REAL: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0).to(tl.int64)
    k, row, column = cell // (P * P), (cell // P) % P, cell % P
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < C
    width, height = tl.load(ws + k), tl.load(hs + k)
    x1, y1, base = tl.load(x1s + k), tl.load(y1s + k), tl.load(bases + k)
    map_h, map_w = tl.load(map_hs + k), tl.load(map_ws + k)
    shift_x, shift_y = _shifts(offset, k, row, column, width, height, GAMMA, P, SHIFTED, REAL)
    half = tl.full((), 0.5, REAL)
    total = tl.zeros((BLOCK,), REAL)
    for sample_y in range(SY):
        y = y1 + (row + (sample_y + half) / SY) * (height / P) + shift_y
        top, bottom, fy, counts_y, _ = _axis(y, map_h)
        for sample_x in range(SX):
            x = x1 + (column + (sample_x + half) / SX) * (width / P) + shift_x
            left, right, fx, counts_x, _ = _axis(x, map_w)
            upper, lower = base + top * map_w.to(tl.int64), base + bottom * map_w.to(tl.int64)
            a = tl.load(table + (upper + left) * C + channel, mask, 0.0).to(REAL)
            b = tl.load(table + (upper + right) * C + channel, mask, 0.0).to(REAL)
            c = tl.load(table + (lower + left) * C + channel, mask, 0.0).to(REAL)
            d = tl.load(table + (lower + right) * C + channel, mask, 0.0).to(REAL)
            value = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)
            total += value * (counts_y * counts_x)
    tl.store(out + cell * C + channel, total / (SY * SX), mask)


@triton.jit
def _backward(
    table, gradient, table_gradient, offset_gradient, x1s, y1s, ws, hs, map_hs, map_ws, bases, offset,
    GAMMA: tl.constexpr, P: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, SHIFTED: tl.constexpr, REAL: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr, TO_TABLE: tl.constexpr, TO_OFFSET: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0).to(tl.int64)
    k, row, column = cell // (P * P), (cell // P) % P, cell % P
    width, height = tl.load(ws + k), tl.load(hs + k)
    x1, y1, base = tl.load(x1s + k), tl.load(y1s + k), tl.load(bases + k)
    map_h, map_w = tl.load(map_hs + k), tl.load(map_ws + k)
    shift_x, shift_y = _shifts(offset, k, row, column, width, height, GAMMA, P, SHIFTED, REAL)
    half = tl.full((), 0.5, REAL)
    along_x, along_y = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    for first in range(0, C, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        mask = channel < C
        g = tl.load(gradient + cell * C + channel, mask, 0.0).to(REAL) / (SY * SX)
        for sample_y in range(SY):
            y = y1 + (row + (sample_y + half) / SY) * (height / P) + shift_y
            top, bottom, fy, counts_y, inside_y = _axis(y, map_h)
            for sample_x in range(SX):
                x = x1 + (column + (sample_x + half) / SX) * (width / P) + shift_x
                left, right, fx, counts_x, inside_x = _axis(x, map_w)
                upper, lower = base + top * map_w.to(tl.int64), base + bottom * map_w.to(tl.int64)
                counts = counts_y * counts_x
                if TO_TABLE:
                    own = g * counts
                    tl.atomic_add(table_gradient + (upper + left) * C + channel, own * (1 - fy) * (1 - fx), mask)
                    tl.atomic_add(table_gradient + (upper + right) * C + channel, own * (1 - fy) * fx, mask)
                    tl.atomic_add(table_gradient + (lower + left) * C + channel, own * fy * (1 - fx), mask)
                    tl.atomic_add(table_gradient + (lower + right) * C + channel, own * fy * fx, mask)
                if TO_OFFSET:
                    a = tl.load(table + (upper + left) * C + channel, mask, 0.0).to(REAL)
                    b = tl.load(table + (upper + right) * C + channel, mask, 0.0).to(REAL)
                    c = tl.load(table + (lower + left) * C + channel, mask, 0.0).to(REAL)
                    d = tl.load(table + (lower + right) * C + channel, mask, 0.0).to(REAL)
                    along_x += g * ((1 - fy) * (b - a) + fy * (d - c)) * (counts * inside_x)
                    along_y += g * ((1 - fx) * (c - a) + fx * (d - b)) * (counts * inside_y)
    if TO_OFFSET:
        place = k * 2 * P * P + row * P + column
        tl.store(offset_gradient + place, GAMMA * width * tl.sum(along_x))
        tl.store(offset_gradient + place + P * P, GAMMA * height * tl.sum(along_y))


@triton.jit
def _rows(gradient, weights, order, bounds, result, E: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < C
    total = tl.zeros((BLOCK,), weights.dtype.element_ty)
    place, end = tl.load(bounds + row), tl.load(bounds + row + 1)
    while place < end:
        entry = tl.load(order + place)
        g = tl.load(gradient + (entry // E) * C + channel, mask, 0.0)
        total += g.to(weights.dtype.element_ty) * tl.load(weights + entry)
        place += 1
    tl.store(result + row * C + channel, total, mask)
