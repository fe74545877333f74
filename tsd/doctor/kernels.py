"""Triton's kernels, compiled on this machine: that takes a C compiler, Python's headers, and a place to keep them."""

import importlib.util
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tsd.doctor.checks import SETUP, Check, Context
from tsd.doctor.operators import outcome, pooling
from tsd.doctor.places import mount_of

GAMMA = 0.7
"""Not that of :mod:`tsd.doctor.operators`: a constant of the kernel, which has to be compiled anew for it."""

_CACHE = "TRITON_CACHE_DIR"


def kernels(context: Context) -> list[Check]:
    """Compile the pooling's kernels in an empty cache and run them once; look at where the cache is."""
    if not torch.cuda.is_available():
        return [Check("Triton", "ok", "not needed: no GPU here")]
    if importlib.util.find_spec("triton") is None:
        finding = "not installed: the pooling takes its slower backend"
        return [Check("Triton", "warning", finding, SETUP)]
    index = 0 if context.here.world == 1 else context.here.device(torch.cuda.device_count())
    return [*trial(torch.device("cuda", index)), *cache()]


def trial(device: torch.device) -> list[Check]:
    """Compile and run."""
    started = time.monotonic()
    with _empty_cache():
        problem = outcome(pooling("triton", GAMMA), device)
    if problem is None:
        took = time.monotonic() - started
        return [Check("Triton", "ok", f"the pooling's kernels compile and run on {device}, {took:.1f} s")]
    lacking = list(_lacking())
    finding = f"the pooling's kernels do not run on {device}: {problem}"
    if lacking:
        what = " and ".join(name for name, _ in lacking)
        finding = f"{finding}; missing on this node: {what}"
    remedy = " ".join(how for _, how in lacking) or f"Clear what was compiled before: `rm -rf {folder()}`."
    return [Check("Triton", "error", finding, remedy)]


def cache() -> list[Check]:
    """A line if the kernels would be kept on a network file system."""
    place = folder()
    mount = mount_of(place)
    if not mount.is_network:
        return []
    finding = f"its cache {place} is on {mount.kind}, where processes that start together get in each other's way"
    return [Check("Triton", "warning", finding, f"Keep it on the node: `export {_CACHE}=/tmp/$USER/triton`.")]


def folder() -> Path:
    """Where Triton keeps what it has compiled."""
    home = Path(os.environ.get("TRITON_HOME", "~")).expanduser()
    return Path(os.environ.get(_CACHE) or home / ".triton" / "cache")


def _lacking() -> Iterator[tuple[str, str]]:
    """(what Triton compiles with and is not here, remedy)."""
    compiler = os.environ.get("CC") or "gcc"
    if not any(map(shutil.which, (compiler, "clang"))):
        yield f"a C compiler ({compiler})", "Load one in the job: `module load gcc`; Debian: `apt-get install gcc`."
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        yield f"Python's header {header}", "Debian: `apt-get install python3-dev`; others have it in python3-devel."


@contextmanager
def _empty_cache() -> Iterator[None]:
    before = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="tsd-doctor-") as empty:
        os.environ[_CACHE] = empty
        try:
            yield
        finally:
            os.environ.pop(_CACHE, None)
            if before is not None:
                os.environ[_CACHE] = before
