"""Where and with what a run is made: what decides whether another machine gets the same bits."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from tsd.engine import distributed

CPUINFO = Path("/proc/cpuinfo")

INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
"""What the libraries choose their kernels by, in the kernel's names."""


def environment() -> dict[str, Any]:
    """Git commit, versions, machine, Slurm job; versions of all that touches picture, weight or figure."""
    import cv2
    import mmcv
    import mmdet
    import numpy
    import torch
    import torchvision

    from tsd.ops import mmcv_ext

    commit, dirty = git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "mmdet": mmdet.__version__,
        "mmcv": mmcv.__version__,
        "mmcv_operators": mmcv_ext.origin(),
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": cpu_name(CPUINFO),
        "instructions": instructions(CPUINFO),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "hostname": platform.node(),
        "platform": platform.platform(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "processes": distributed.world(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def cpu_name(cpuinfo: Path) -> str:
    """The first CPU's name, family, model and stepping, for virtual machines often hide the name."""
    known = _first_cpu(cpuinfo)
    if "model name" not in known:
        return platform.processor() or platform.machine()
    numbers = [known.get(key, "?") for key in ("cpu family", "model", "stepping")]
    return "{} (family {}, model {}, stepping {})".format(known["model name"], *numbers)


def instructions(cpuinfo: Path) -> list[str]:
    """Those of :data:`INSTRUCTIONS` that the first CPU has."""
    flags = _first_cpu(cpuinfo).get("flags", "").split()
    return [name for name in INSTRUCTIONS if name in flags]


def _first_cpu(cpuinfo: Path) -> dict[str, str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it), or (None, None) outside git.

    A cluster's own settings in ``slurm/`` do not count: they change no result.
    """
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)slurm"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit.stdout.strip(), bool(changes.stdout.strip())
