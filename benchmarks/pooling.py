"""Deformable RoI pooling, forward and backward: ours against torchvision's RoIAlign on the same RoIs.

    python benchmarks/pooling.py [--rounds 5] [--threads 2]

1,024 RoIs of a 800 x 1216 picture, 256 channels, 7 x 7 cells, 2 x 2 samples, four levels, float32.
"""

import argparse
import statistics
import time

import torch
from torchvision.ops import roi_align

from tsd.ops import deform_roi_pool, map_roi_levels

STRIDES = [4, 8, 16, 32]


def inputs() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Features, RoIs of all sizes, and offsets."""
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(1, 256, 800 // stride, 1216 // stride, generator=generator).requires_grad_() for stride in STRIDES
    ]
    corner = torch.rand(1024, 2, generator=generator) * torch.tensor([900.0, 600.0])
    size = torch.rand(1024, 2, generator=generator) ** 2 * 500 + 8
    rois = torch.cat((torch.zeros(1024, 1), corner, corner + size), dim=1)
    return features, rois, torch.randn(1024, 2, 7, 7, generator=generator).requires_grad_()


def ours(features: list[torch.Tensor], rois: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """All levels in one call."""
    return deform_roi_pool(features, rois, offset, strides=STRIDES, output_size=7, sampling_ratio=2, gamma=0.1)


def aligned(features: list[torch.Tensor], rois: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """RoIAlign level by level, without offsets."""
    levels = map_roi_levels(rois, len(features))
    out = features[0].new_zeros(len(rois), features[0].shape[1], 7, 7)
    for level, feature in enumerate(features):
        own = (levels == level).nonzero().flatten()
        out = out.index_copy(0, own, roi_align(feature, rois[own], 7, 1 / STRIDES[level], 2, aligned=True))
    return out


def main() -> None:
    """Measure both in turn and print the ratio of the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features, rois, offset = inputs()
    times: dict[str, list[float]] = {"ours": [], "roi_align": []}
    for turn in range(args.rounds + 1):
        for name, function in (("ours", ours), ("roi_align", aligned)):
            start = time.perf_counter()
            function(features, rois, offset).sum().backward()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:10s} {value:.3f} s forward + backward")
    print(f"ours / roi_align: {medians['ours'] / medians['roi_align']:.2f}")


if __name__ == "__main__":
    main()
