"""Which code pools: chosen by name, and refused with the reason where it can't run."""

import importlib.util
import os
import tempfile
import warnings
from functools import cache

import torch

BACKENDS = ("auto", "torch", "triton", "mmcv")
"""Backends of the pooling.

``torch`` runs on any device and is the reference. ``triton`` is one kernel over all levels for each direction, on CUDA
(with ``TRITON_INTERPRET=1`` in the environment its kernels run anywhere, slowly). ``mmcv`` calls mmcv's
``DeformRoIPool`` level by level on CUDA, for comparison. ``auto`` takes ``triton`` where it can run, which is tried
once in a process, else ``torch``.
"""


def choose_backend(name: str, device: torch.device) -> str:
    """A backend that runs on ``device``: ``torch``, ``triton`` or ``mmcv``.

    Args:
        name: one of :data:`BACKENDS`.
        device: of the features.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend that was asked for can't run here.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "torch":
        return name
    if name == "auto":
        can = device.type == "cuda" and _obstacle("triton", device) is None and _compiles(device)
        return "triton" if can else "torch"
    obstacle = _obstacle(name, device)
    if obstacle:
        raise RuntimeError(f"backend {name!r} can't run here: {obstacle}; use 'torch', or 'auto'")
    return name


def _obstacle(name: str, device: torch.device) -> str | None:
    """Why a backend can't run, None if it can."""
    if importlib.util.find_spec(name) is None:
        return f"the package {name} is not installed"
    if device.type == "cuda":
        if name == "mmcv" and not _mmcv_has_cuda():
            return "there is no mmcv compiled with CUDA"
        return None
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"it needs CUDA tensors, and these are on {device}"


@cache
def _compiles(device: torch.device) -> bool:
    """Whether Triton's kernels compile and run: they need a C compiler and Python's headers on the node."""
    # Its cache is in the home folder by default, which on a cluster all nodes share: slow, and where locks fail.
    os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"triton-{os.getuid()}"))
    try:
        _try_triton(device)
    except Exception as error:  # whatever compiler, driver or file system say
        reason = (str(error).strip().splitlines() or ["no reason"])[0]
        warnings.warn(
            f"Triton's kernels can't be used on {device} ({type(error).__name__}: {reason}); the pooling goes on "
            "in plain PyTorch, which is slower",
            stacklevel=2,
        )
        return False
    return True


def _try_triton(device: torch.device) -> None:
    """Pool one RoI, forward and backward."""
    from tsd.ops.deform_roi_pool import deform_roi_pool

    with torch.inference_mode(False), torch.enable_grad():  # a prediction may be what asks
        feature = torch.ones(1, 16, 8, 8, device=device, requires_grad=True)
        rois = torch.tensor([[0.0, 4.0, 4.0, 24.0, 24.0]], device=device)
        offset = torch.zeros(1, 2, 2, 2, device=device, requires_grad=True)
        pooled = deform_roi_pool(
            [feature], rois, offset, strides=[4], output_size=2, sampling_ratio=1, gamma=0.1, backend="triton"
        )
        pooled.sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mmcv_has_cuda() -> bool:
    from mmcv.ops import get_compiling_cuda_version

    return bool(get_compiling_cuda_version() != "not available")
