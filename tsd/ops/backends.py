"""Which code pools: chosen by name, and refused with the reason where it can't run."""

import importlib.util
import os

import torch

BACKENDS = ("auto", "torch", "triton", "mmcv")
"""Backends of the pooling.

``torch`` runs on any device and is the reference. ``triton`` is one kernel over all levels for each direction, on CUDA
(with ``TRITON_INTERPRET=1`` in the environment its kernels run anywhere, slowly). ``mmcv`` calls mmcv's
``DeformRoIPool`` level by level on CUDA, for comparison. ``auto`` takes ``triton`` where it can run, else ``torch``.
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
        return "triton" if device.type == "cuda" and _obstacle("triton", device) is None else "torch"
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


def _mmcv_has_cuda() -> bool:
    from mmcv.ops import get_compiling_cuda_version

    return bool(get_compiling_cuda_version() != "not available")
