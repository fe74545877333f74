"""mmcv's compiled operators, as far as the detectors call them, on torchvision's binaries.

mmcv publishes source only; its extension ``mmcv._ext`` takes half an hour of a C++ compiler, and has CUDA kernels only
where nvcc of torch's CUDA was at hand. torchvision's wheels hold the same kernels for CPU and CUDA. The functions here
have the names and arguments of mmcv's ``ops/csrc/pytorch/pybind.cpp`` and give what those give: on the CPU the same
bits, but for the scores of Gaussian soft-NMS (the last bit) and deformable convolutions (1e-6 of the largest value).

    python -m tsd.ops.mmcv_ext      # writes mmcv/_ext.py, which hands on to this module

Python prefers a compiled ``mmcv/_ext.*.so`` in the same folder, so that installing a compiled mmcv is all it takes to
use it.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from tsd.errors import InputError
from tsd.files import write_text

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "nms",
    "roi_align_backward",
    "roi_align_forward",
    "softnms",
]

COMPILED = (
    "uv pip install ninja && MMCV_WITH_OPS=1 "
    "uv pip install --no-build-isolation --no-deps --reinstall --no-cache --no-binary onedl-mmcv onedl-mmcv=={version}"
)
"""Command that installs a compiled mmcv of the version that is here."""

INSTALL = "python -m tsd.ops.mmcv_ext"
"""Command that puts the operators of this module in place."""

SHIM = '''"""mmcv's operators from torchvision's binaries; written by `python -m tsd.ops.mmcv_ext`, see there.

A compiled extension in this folder is imported instead of this file.
"""

from tsd.ops.mmcv_ext import *
from tsd.ops.mmcv_ext import __getattr__
'''

_LINEAR, _GAUSSIAN = 1, 2
"""Methods of soft-NMS; 0 is the hard one."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (K, 4) that are kept, in falling order of score.

    mmcv's order of equal scores is kept, on which a training's bits depend: it sorts unstably, torchvision stably.

    Args:
        boxes: (K, 4) xyxy.
        scores: (K,).
        iou_threshold: a box is dropped if its IoU with a kept one is larger; in single precision, as mmcv has it.
        offset: 1 where sides are x2 − x1 + 1 (mmdet 1.x), else 0.
    """
    order = scores.sort(0, descending=True)[1]
    boxes = boxes[order]
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return order[torch.ops.torchvision.nms(boxes, scores[order], float(np.float32(iou_threshold)))]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017) on the CPU: fills ``dets`` (K, 5: xyxy and score), returns the indices.

    Args:
        boxes: (K, 4) xyxy, float32, on the CPU as mmcv asks.
        scores: (K,).
        dets: (K, 5), filled as far as indices are returned.
        iou_threshold: of the hard and the linear method.
        sigma: of the Gaussian one.
        min_score: a box whose score falls below is dropped.
        method: 0 hard, 1 linear, 2 Gaussian.
        offset: see :func:`nms`.
    """
    single = np.float32
    rows = np.concatenate([boxes.detach().numpy(), scores.detach().numpy()[:, None]], axis=1).astype(single)
    areas = (rows[:, 2] - rows[:, 0] + single(offset)) * (rows[:, 3] - rows[:, 1] + single(offset))
    indices = np.arange(len(rows))
    here, count = 0, len(rows)
    while here < count:
        best = here + int(rows[here:count, 4].argmax())
        for array in (rows, areas, indices):
            array[[here, best]] = array[[best, here]]
        later = slice(here + 1, count)
        corners = np.maximum(rows[here, :2], rows[later, :2]), np.minimum(rows[here, 2:4], rows[later, 2:4])
        sides = np.maximum(single(0), corners[1] - corners[0] + single(offset))
        shared = sides[:, 0] * sides[:, 1]
        with np.errstate(invalid="ignore", divide="ignore"):  # boxes without area, as in mmcv
            overlap = shared / (areas[here] + areas[later] - shared)
        rows[later, 4] *= _weights(overlap, method, single(iou_threshold), single(sigma))
        count = _compact((rows, areas, indices), rows[:, 4] >= single(min_score), here + 1, count)
        here += 1
    dets[:count] = torch.from_numpy(rows[:count])
    return torch.from_numpy(indices[:count].copy())


def _weights(overlap: np.ndarray, method: int, threshold: np.float32, sigma: np.float32) -> np.ndarray:
    """What the scores of boxes with that IoU are multiplied by."""
    if method == _GAUSSIAN:  # rounded from double precision, as the C library's expf is
        return np.exp((-(overlap * overlap) / sigma).astype(np.float64)).astype(np.float32)
    lowered = np.float32(1) - overlap if method == _LINEAR else np.float32(0)
    return np.where(overlap >= threshold, lowered, np.float32(1))


def _compact(arrays: tuple[np.ndarray, ...], kept: np.ndarray, start: int, end: int) -> int:
    """Drop what is not kept of [start, end), its places taken by the last that are; returns the new end."""
    new_end = start + int(kept[start:end].sum())
    holes = start + np.flatnonzero(~kept[start:new_end])
    donors = new_end + np.flatnonzero(kept[new_end:end])[::-1]
    for array in arrays:
        array[holes] = array[donors]
    return new_end


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign by means (``pool_mode`` 1) of rois (K, 5) into ``output`` (K, C, height, width).

    Raises:
        RuntimeError: ``pool_mode`` 0, maxima, which torchvision does not have; on the CPU also a RoI that is not finite
            or of a picture that is not there, for which the kernel would read any place in memory.
    """
    _need_mean(pool_mode)
    if rois.device.type == "cpu" and len(rois):
        pictures = rois[:, 0]
        if not (bool(torch.isfinite(rois).all()) and pictures.min() >= 0 and pictures.max() < len(input)):
            raise RuntimeError(
                f"RoIAlign: expected finite RoIs of pictures 0 to {len(input) - 1}; did the training diverge?"
            )
    output.copy_(
        torch.ops.torchvision.roi_align(
            *_wide(input, rois), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` for its input, into ``grad_input`` (B, C, H, W).

    Raises:
        RuntimeError: see there.
    """
    _need_mean(pool_mode)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            *_wide(grad_output, rois),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _need_mean(pool_mode: int) -> None:
    if pool_mode != 1:
        raise RuntimeError(_missing("roi_align with pool_mode='max'"))


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **sizes: int
) -> None:
    """Deformable convolution (Dai et al., ICCV 2017) without mask and bias into ``output``.

    Args:
        input: (B, C, H, W).
        weight: (C_out, C / group, kH, kW).
        offset: (B, deformable_group · kH · kW · 2, H_out, W_out), y then x.
        output: (B, C_out, H_out, W_out).
        columns: mmcv's work space, not used, as ``ones`` is.
        ones: see there.
        **sizes: mmcv's ``dW, dH, padW, padH, dilationW, dilationH, group, deformable_group`` and more.
    """
    mask, bias = _no_mask_no_bias(input, weight)
    tensors = _wide(input, weight, offset.nan_to_num(nan=0.0), mask, bias)  # the kernel takes NaN for a place in memory
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *_sizes(sizes)))
    output.add_((offset * 0).sum(dim=1, keepdim=True))  # NaN where an offset is


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` for its input and offset, into tensors of their shapes."""
    gradients = _deform_conv_backward(input, offset, weight, grad_output, sizes)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float = 1.0,
    **sizes: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` for its weight, times ``scale``, added to ``grad_weight``."""
    gradients = _deform_conv_backward(input, offset, grad_weight, grad_output, sizes)
    grad_weight.add_(gradients[1].to(grad_weight.dtype), alpha=scale)


def _deform_conv_backward(
    input: Tensor, offset: Tensor, weight: Tensor, grad_output: Tensor, sizes: dict[str, int]
) -> Any:
    """torchvision's gradients: of input, weight, offset, mask and bias."""
    mask, bias = _no_mask_no_bias(input, weight)
    tensors = _wide(grad_output, input, weight, offset.nan_to_num(nan=0.0), mask, bias)
    return torch.ops.torchvision._deform_conv2d_backward(*tensors, *_sizes(sizes))


def _no_mask_no_bias(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return input.new_zeros((len(input), 1)), input.new_zeros(len(weight))


def _wide(*tensors: Tensor) -> list[Tensor]:
    """In single precision where torchvision has no kernel: bfloat16, and on the CPU half precision."""
    missing = (torch.bfloat16, torch.float16) if tensors[0].device.type == "cpu" else (torch.bfloat16,)
    return [tensor.float() if tensor.dtype in missing else tensor for tensor in tensors]


def _sizes(sizes: dict[str, int]) -> tuple[int | bool, ...]:
    """mmcv's named sizes in torchvision's order; without mask."""
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
    return (*(sizes[name] for name in names), False)


def get_compiler_version() -> str:
    """For mmcv's report of the environment."""
    return f"none: operators of torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """For mmcv's report of the environment: none of mmcv's own CUDA kernels is here."""
    return "not available"


def __getattr__(name: str) -> Callable[..., Any]:
    """Any other operator: there, since mmcv asks for the names of all when it is imported, and refused when called."""
    if name.startswith("_"):
        raise AttributeError(name)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(_missing(name))

    refuse.__name__ = name
    return refuse


def _missing(name: str) -> str:
    version = importlib.metadata.version("onedl-mmcv")
    return (
        f"mmcv's operator {name} is not here: this environment has no compiled mmcv, and tsd brings only the "
        "operators that its own detectors call. To compile mmcv, with a C++ compiler and for a GPU also nvcc of "
        f"torch's CUDA and FORCE_CUDA=1: {COMPILED.format(version=version)}"
    )


def origin() -> str:
    """Whose operators ``mmcv.ops`` runs here: ``compiled`` or ``torchvision``.

    Raises:
        InputError: neither is in place.
    """
    found = importlib.util.find_spec("mmcv._ext")
    if found is None or found.origin is None:
        raise InputError(f"mmcv has no operators in this environment: run `{INSTALL}`, as `make setup` does")
    return "torchvision" if found.origin.endswith(".py") else "compiled"


def install() -> Path:
    """Write ``mmcv/_ext.py``; returns what ``mmcv._ext`` then is, a compiled extension if there is one.

    Raises:
        InputError: mmcv is not installed.
    """
    package = importlib.util.find_spec("mmcv")
    if package is None or package.origin is None:
        raise InputError("mmcv is not installed in this environment; `make setup` installs it")
    write_text(Path(package.origin).with_name("_ext.py"), SHIM)
    importlib.invalidate_caches()
    found = importlib.util.find_spec("mmcv._ext")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)


if __name__ == "__main__":
    where = install()
    print(f"mmcv's operators: {'torchvision' if where.suffix == '.py' else 'compiled'} ({where})", file=sys.stderr)
