"""Every operator that the detectors call, as cases of :mod:`gpu_check`: forward, and the gradient of each input."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import mmcv.ops
import torch
import torchvision
from gpu_check import Case, Outputs, Place, Special
from mmcv.ops.deform_conv import deform_conv2d as mmcv_deform_conv2d
from torch import Tensor

from tsd.ops import FeaturePyramid, deform_roi_pool, mmcv_ext, released_pool

STRIDES = (4, 8, 16, 32)

POOLED = {"float64": 1e-10, "float32": 2e-4}
"""Positions are several hundred cells, which single precision holds to 3e-5 of a cell."""

HALF = {"float16": 1e-2, "bfloat16": 8e-2}

KEPT = {"float64": 1e-10, "float32": 1e-6}
"""Boxes that are handed through, and their places in the input."""


def operator_cases(quick: bool) -> dict[str, Case | Special]:
    """All of them; ``quick``: few RoIs and channels, for Triton's interpreter."""
    return {**_suppression(), **_roi_align(), **_deformable_convolutions(), **_poolings(quick)}


def with_gradients(outputs: Sequence[Tensor], inputs: dict[str, Tensor]) -> Outputs:
    """Outputs, and the inputs' gradients for fixed gradients of the outputs."""
    weights = [
        torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output) for output in outputs
    ]
    found = torch.autograd.grad(outputs, list(inputs.values()), weights)
    named = {f"gradient of {name}": gradient for name, gradient in zip(inputs, found, strict=True)}
    return {f"output {index}": output for index, output in enumerate(outputs)} | named


def _normal(place: Place, shape: tuple[int, ...], salt: int) -> Tensor:
    return torch.randn(shape, generator=place.generator(salt), dtype=torch.float64)


def random_rois(place: Place, number: int, size: tuple[int, int], batch: int) -> Tensor:
    """(K, 5) boxes of all sizes, some of them partly outside the picture; never in half precision."""
    generator = place.generator(1)
    corner = torch.rand(number, 2, generator=generator, dtype=torch.float64) * torch.tensor(size) * 0.8 - 4
    side = torch.rand(number, 2, generator=generator, dtype=torch.float64) ** 2 * size[0] * 0.5 + 8
    boxes = place.moved(torch.cat((corner, corner + side), dim=1), 1)
    picture = torch.arange(number)[:, None] % batch
    return torch.cat((picture, boxes), dim=1).to(place.device, place.geometry)


# Suppression.


def _suppression() -> dict[str, Case | Special]:
    cases: dict[str, Case | Special] = {
        f"nms, offset {offset}": Case(partial(_nms, partial(mmcv.ops.nms, iou_threshold=0.5, offset=offset)), KEPT)
        for offset in (0, 1)
    }
    cases["nms by class"] = Case(partial(_nms, _by_class), KEPT)
    for method in ("naive", "linear", "gaussian"):  # on the CPU in single precision wherever the boxes are
        soft = partial(mmcv.ops.soft_nms, iou_threshold=0.3, sigma=0.5, min_score=1e-3, method=method)
        cases[f"soft-NMS, {method}"] = Case(partial(_nms, soft), {"float32": 1e-5})
    return cases | {"nms, equal scores": nms_with_ties}


def _boxes(place: Place, number: int) -> Tensor:
    generator = place.generator(3)
    corner = torch.rand(number, 2, generator=generator, dtype=torch.float64) * 100
    return torch.cat(
        (corner, corner + 10 + torch.rand(number, 2, generator=generator, dtype=torch.float64) * 40), dim=1
    )


def _nms(suppress: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], place: Place, number: int = 150) -> Outputs:
    order = torch.randperm(number, generator=place.generator(4)).double()
    boxes, scores = place.put(_boxes(place, number), 3), place.put((order + 1) / number, 4)
    kept, index = suppress(boxes, scores)
    return {"boxes": kept, "places": index}


def _by_class(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.arange(len(boxes), device=boxes.device) % 3
    return mmcv.ops.batched_nms(boxes, scores, labels, {"type": "nms", "iou_threshold": 0.5})


def nms_with_ties(device: torch.device) -> dict[str, Any]:
    """Where scores are equal any order is right: what is kept must not overlap, and must be why the rest is not."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        boxes = _boxes(Place(), 600)
        scores = (torch.arange(600) % 5).double() / 5 + 0.1
        _, index = mmcv.ops.nms(boxes.to(device, dtype), scores.to(device, dtype), 0.5)
        problem = _why_not_suppression(boxes, scores, index.cpu(), 0.5)
        found[str(dtype).removeprefix("torch.")] = {
            "worst": None if problem else 0.0,
            "output": problem or "places",
            "limit": 0.0,
            "correct": problem is None,
        }
    return found


def _why_not_suppression(boxes: Tensor, scores: Tensor, kept: Tensor, threshold: float) -> str | None:
    """What is wrong with the places that were kept, None if they are a greedy suppression's of some order of ties."""
    overlaps = torchvision.ops.box_iou(boxes, boxes)
    chosen = scores[kept]
    if len(kept.unique()) < len(kept) or bool((chosen[1:] > chosen[:-1]).any()):
        return "a box twice, or out of order"
    among = overlaps[kept][:, kept].fill_diagonal_(0)
    if bool((among > threshold + 1e-5).any()):
        return "two boxes that overlap are both kept"
    reasons = (overlaps[:, kept] > threshold - 1e-5) & (chosen[None] >= scores[:, None])
    return None if bool(reasons.any(dim=1).all()) else "a box is dropped that no better one overlaps"


# RoIAlign and deformable convolution.


def _roi_align() -> dict[str, Case]:
    return {
        f"RoIAlign, {samples or 'adaptive'} samples{', aligned' if aligned else ''}": Case(
            partial(_aligned, samples, aligned), POOLED
        )
        for samples in (2, 0)
        for aligned in (True, False)
    }


def _aligned(samples: int, aligned: bool, place: Place) -> Outputs:
    features = place.put(_normal(place, (2, 16, 40, 56), 10), 10).requires_grad_()
    rois = random_rois(place, 64, (224, 160), 2)
    pooled = mmcv.ops.roi_align(features, rois, 7, 0.25, samples, "avg", aligned)
    return with_gradients([pooled], {"features": features})


def _deformable_convolutions() -> dict[str, Case]:
    layers = {"torchvision's": _torchvision_layer}
    if "deform_conv_forward" in mmcv_ext.__all__:
        layers["by mmcv's interface"] = mmcv_deform_conv2d
    sizes = {"": (1, 1, 1, 1), ", stride 2, 2 groups": (2, 2, 2, 2)}
    return {
        f"deformable convolution, {name}{what}": Case(partial(_deformed, layer, *size), POOLED)
        for name, layer in layers.items()
        for what, size in sizes.items()
    }


def _torchvision_layer(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int, padding: int, dilation: int, groups: int, deform_groups: int
) -> Tensor:
    return torchvision.ops.deform_conv2d(x, offset, weight, None, stride, padding, dilation)


def _deformed(
    layer: Callable[..., Tensor], stride: int, dilation: int, groups: int, deform_groups: int, place: Place
) -> Outputs:
    x = place.put(_normal(place, (2, 8, 20, 24), 20), 20).requires_grad_()
    weight = place.put(_normal(place, (12, 8 // groups, 3, 3), 21), 21).requires_grad_()
    sides = (20 - 1) // stride + 1, (24 - 1) // stride + 1
    offset = place.put(2 * _normal(place, (2, 18 * deform_groups, *sides), 22), 22).requires_grad_()
    out = layer(x, offset, weight, stride, dilation, dilation, groups, deform_groups)
    return with_gradients([out], {"input": x, "offset": offset, "weight": weight})


# Poolings.


def _poolings(quick: bool) -> dict[str, Case]:
    sizes = (3, 4, 2, (64, 64)) if quick else (128, 256, 7, (640, 480))
    few = sizes if quick else (4, 256, 7, (640, 480))  # Triton compiles each number of samples that a RoI has
    cases: dict[str, Case] = {}
    for samples in (2,) if quick else (2, 1, 0):
        own, limits = (sizes, POOLED | HALF) if samples == 2 else (few, POOLED)
        expected = partial(_pooled, partial(_ours, "torch", samples), *own)  # one for all: it is worked out once
        triton = partial(_pooled, partial(_ours, "triton", samples), *own)
        what = f"{samples or 'adaptive'} sample{'' if samples == 1 else 's'}"
        cases[f"pooling by torch, {what}"] = Case(expected, limits)
        cases[f"pooling by triton, {what}"] = Case(triton, limits, against=expected)
        if samples == 2:
            in_order = partial(_in_fixed_order, triton)
            cases[f"pooling by triton, {what}, fixed order"] = Case(in_order, limits, against=expected)
    cases["released pooling"] = Case(partial(_pooled, _released, *sizes), POOLED)
    return cases


def _pooled(
    pool: Callable[..., Tensor], number: int, channels: int, cells: int, size: tuple[int, int], place: Place
) -> Outputs:
    """``pool(maps, rois, offset)`` of the four levels of two pictures, with an offset for every cell."""
    maps = {}
    for level, stride in enumerate(STRIDES):
        value = _normal(place, (2, channels, size[1] // stride, size[0] // stride), 10 + level)
        if place.stored is not None:  # the reference sees what is stored
            value = value.to(place.stored).to(value.dtype)
        maps[f"level {level}"] = value.to(place.device, place.dtype).requires_grad_()
    rois = random_rois(place, number, size, 2)
    offset = place.moved(_normal(place, (number, 2, cells, cells), 2), 2).to(place.device, place.geometry)
    inputs = maps | {"offset": offset.requires_grad_()}
    return with_gradients([pool(list(maps.values()), rois, offset)], inputs)


def _ours(backend: str, samples: int, maps: list[Tensor], rois: Tensor, offset: Tensor) -> Tensor:
    options = {"strides": STRIDES, "output_size": offset.shape[-1], "sampling_ratio": samples, "gamma": 0.1}
    return deform_roi_pool(maps, rois, offset, backend=backend, **options)


def _released(maps: list[Tensor], rois: Tensor, offset: Tensor) -> Tensor:
    return released_pool(FeaturePyramid(maps, STRIDES), rois, offset, output_size=offset.shape[-1], gamma=0.1)


def _in_fixed_order(run: Callable[[Place], Outputs], place: Place) -> Outputs:
    with _deterministic():
        return run(place)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
