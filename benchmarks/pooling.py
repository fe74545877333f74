"""Deformable RoI pooling, forward and backward: ours against the ways it is usually done, on the same RoIs.

    python benchmarks/pooling.py [--device cpu] [--dtypes float32] [--rounds 5] [--threads 2] [--json FILE]

1,024 RoIs of a 800 x 1216 picture, 256 channels, 7 x 7 cells, 2 x 2 samples, four levels. ``roi_align`` is
torchvision's, level by level and without offsets; ``grid_sample`` loops over levels with torch's own sampling; on a GPU
``mmcv`` is its ``DeformRoIPool``, level by level. All implementations take turns; ratios are of the medians.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from tsd.ops import deform_roi_pool, map_roi_levels
from tsd.ops.backends import choose_backend

STRIDES = [4, 8, 16, 32]
SIZE, SAMPLES, GAMMA = 7, 2, 0.1
OPTIONS = {"strides": STRIDES, "output_size": SIZE, "sampling_ratio": SAMPLES, "gamma": GAMMA}

Pool = Callable[[list[Tensor], Tensor, Tensor], Tensor]


def inputs(
    device: torch.device, dtype: torch.dtype, number: int, picture: tuple[int, int] = (1216, 800)
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features, RoIs of all sizes, and offsets."""
    generator = torch.Generator().manual_seed(0)
    width, height = picture
    features = [torch.randn(1, 256, height // stride, width // stride, generator=generator) for stride in STRIDES]
    corner = torch.rand(number, 2, generator=generator) * torch.tensor([width * 0.74, height * 0.75])
    size = torch.rand(number, 2, generator=generator) ** 2 * width * 0.41 + 8
    rois = torch.cat((torch.zeros(number, 1), corner, corner + size), dim=1).to(device)
    offset = torch.randn(number, 2, SIZE, SIZE, generator=generator).to(device)
    return [feature.to(device, dtype).requires_grad_() for feature in features], rois, offset.requires_grad_()


def ours(backend: str, features: list[Tensor], rois: Tensor, offset: Tensor) -> Tensor:
    """All levels in one call."""
    return deform_roi_pool(features, rois, offset, backend=backend, **OPTIONS)


def by_level(pool: Callable[[Tensor, int, Tensor, Tensor], Tensor]) -> Pool:
    """Pool the RoIs of each level in turn."""

    def run(features: list[Tensor], rois: Tensor, offset: Tensor) -> Tensor:
        levels = map_roi_levels(rois, len(features))
        out = features[0].new_zeros(len(rois), features[0].shape[1], SIZE, SIZE)
        for level, feature in enumerate(features):
            own = (levels == level).nonzero().flatten()
            if len(own):
                out = out.index_copy(0, own, pool(feature, STRIDES[level], rois[own], offset[own]))
        return out

    return run


def aligned(feature: Tensor, stride: int, rois: Tensor, _: Tensor) -> Tensor:
    """torchvision's RoIAlign."""
    return roi_align(feature, rois.to(feature.dtype), SIZE, 1 / stride, SAMPLES, aligned=True)


def sampled(feature: Tensor, stride: int, rois: Tensor, offset: Tensor) -> Tensor:
    """``grid_sample`` of a map of one picture at every sample, then the mean of each cell."""
    height, width = feature.shape[2:]
    side = (rois[:, 3:] - rois[:, 1:3]) / stride
    steps = (torch.arange(SIZE * SAMPLES, device=rois.device) + 0.5) / (SIZE * SAMPLES)
    shift = GAMMA * offset * side[:, :, None, None]  # (n, 2, P, P)
    shift = shift.repeat_interleave(SAMPLES, dim=2).repeat_interleave(SAMPLES, dim=3)
    x = rois[:, 1, None, None] / stride + steps[None, None, :] * side[:, 0, None, None] + shift[:, 0]
    y = rois[:, 2, None, None] / stride + steps[None, :, None] * side[:, 1, None, None] + shift[:, 1]
    grid = torch.stack((2 * x / width - 1, 2 * y / height - 1), dim=-1).view(1, -1, SIZE * SAMPLES, 2)
    values = F.grid_sample(feature, grid.to(feature.dtype), padding_mode="border", align_corners=False)
    cells = F.avg_pool2d(values, SAMPLES)  # (1, C, n · P, P)
    return cells.view(feature.shape[1], len(rois), SIZE, SIZE).transpose(0, 1)


def implementations(device: torch.device) -> dict[str, Pool]:
    """What can run on the device; ``ours`` is the automatic choice."""
    chosen = choose_backend("auto", device)
    found: dict[str, Pool] = {"ours": partial(ours, chosen)}
    if chosen != "torch":
        found["ours (torch)"] = partial(ours, "torch")
    found["grid_sample"] = by_level(sampled)
    found["roi_align"] = by_level(aligned)
    if device.type == "cuda":
        try:
            found["mmcv"] = partial(ours, choose_backend("mmcv", device))
        except RuntimeError as error:
            print(error)
    return found


def measure(
    device: torch.device, dtype: torch.dtype, rounds: int, number: int, picture: tuple[int, int] = (1216, 800)
) -> dict[str, dict[str, Any]]:
    """Median milliseconds of forward and of both directions, the quartiles of both, and on a GPU the peak MiB."""
    features, rois, offset = inputs(device, dtype, number, picture)
    pools = implementations(device)
    gradient = torch.randn(number, 256, SIZE, SIZE, device=device).to(dtype)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pools}
    peaks: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, pool in pools.items():
            for tensor in (*features, offset):
                tensor.grad = None
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            pooled = pool(features, rois, offset)
            if device.type == "cuda":
                torch.cuda.synchronize()
            middle = time.perf_counter()
            pooled.backward(gradient)
            if device.type == "cuda":
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            if turn:  # the first turn warms up
                times[name].append((middle - start, time.perf_counter() - start))
    return {
        name: {
            "forward_ms": 1e3 * statistics.median(first for first, _ in values),
            "both_ms": 1e3 * statistics.median(both for _, both in values),
            "quartiles_ms": quartiles([1e3 * both for _, both in values]),
            **({"peak_mib": peaks[name]} if name in peaks else {}),
        }
        for name, values in times.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """The middle half of the measurements: its lower and its upper end."""
    if len(values) < 2:
        return [values[0], values[0]]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [lower, upper]


def describe(entries: dict[str, dict[str, Any]]) -> str:
    """A line for each implementation."""
    lines = []
    for name, entry in entries.items():
        ratio = entries["ours"]["both_ms"] / entry["both_ms"]
        figures = f"{entry['forward_ms']:9.2f} ms forward {entry['both_ms']:9.2f} ms both"
        spread = "{:.2f} to {:.2f}".format(*entry["quartiles_ms"])
        lines.append(f"  {name:14s} {figures} ({spread})  ours/it {ratio:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print a table for each dtype."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rois", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="also write what was measured to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    found = {name: measure(device, getattr(torch, name), args.rounds, args.rois) for name in args.dtypes}
    for dtype, entries in found.items():
        print(f"{dtype}, {args.rois} RoIs, {device}")
        print(describe(entries))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": platform.platform(), "torch": torch.__version__, "pooling": found}, file, indent=1)


if __name__ == "__main__":
    main()
