"""Whether the GPUs that a run asks for are here: an error at once, not days of work on the CPU."""

import os
import platform

from tsd.engine.params import Run
from tsd.errors import InputError

OLDER_BUILD = "cu126"
"""Build of torch for older drivers, see ``TORCH_BACKEND`` in the Makefile."""


def set_up(run: Run) -> None:
    """Make this process compute as the run's settings and resources say: device, threads, exactness.

    Raises:
        InputError: see :func:`check_device`.
    """
    import torch

    check_device(run)
    if not run.on_gpu:
        torch.set_num_threads(run.resources["threads"])
    torch.set_float32_matmul_precision(run.settings["schedule"].get("float32_matmul", "highest"))


def check_device(run: Run) -> None:
    """Refuse to compute on the CPU what asks for GPUs.

    Raises:
        InputError: the run asks for GPUs and torch sees none, or fewer than this machine's processes; says what to do.
    """
    if not run.on_gpu:
        return
    import torch

    asked = f"params/suites/{run.suite.name}.yaml: resources.gpu: {run.experiment} asks for {run.resources['gpu']}"
    host = platform.node()
    if not torch.cuda.is_available():
        raise InputError(
            f"{asked}, but torch can use none on {host}: {_cause(torch.version.cuda)}; gpu: 0 trains on the CPU"
        )
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        limited = f" (CUDA_VISIBLE_DEVICES={shown})" if shown is not None else ""
        raise InputError(
            f"{asked}, one for each process, but {host} has {count}{limited} and this is its process {place + 1}; "
            "ask for as many as a node has, times resources.nodes"
        )


def _cause(built: str | None) -> str:
    if built is None:
        return (
            "it is built without CUDA; `TORCH_BACKEND= make setup` takes a build with CUDA, "
            f"`TORCH_BACKEND={OLDER_BUILD} make setup` one for older drivers"
        )
    return (
        f"see with `nvidia-smi` whether the job has GPUs and a driver for CUDA {built}; for an older driver "
        f"`TORCH_BACKEND={OLDER_BUILD} make setup` takes another build"
    )
