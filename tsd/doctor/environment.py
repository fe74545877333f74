"""Python, the packages of the lock, and whose operators mmcv runs."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tsd.doctor.checks import SETUP, Check, Context, sentence
from tsd.errors import InputError

PYTHON = ((3, 11), (3, 13))
"""The first and the last version of Python that the project runs on."""

LOCK = "requirements.lock"

BUILT_FOR_CUDA = ("torch", "torchvision")
"""Packages of which other builds of the same version will do: 2.11.0+cu126 is 2.11.0."""

_OF_ONE_BUILD = ("nvidia-", "cuda-", "triton")
"""Beginnings of the names of what a build of torch brings with it."""

_NAMED = 4


def python_version(context: Context) -> Check:
    """Whether Python is one that the project runs on."""
    found = f"Python {sys.version.split()[0]}"
    if PYTHON[0] <= sys.version_info[:2] <= PYTHON[1]:
        return Check("Python", "ok", f"{found} in {sys.prefix}")
    first, last = (".".join(map(str, version)) for version in PYTHON)
    remedy = f"Make the environment with another one: `rm -rf .venv && make setup PYTHON=python{last}`."
    return Check("Python", "error", f"{found}: expected {first} to {last}", remedy)


def packages(context: Context) -> Check:
    """Whether the packages installed are those of the lock."""
    lock = context.suite.root / LOCK
    if not lock.is_file():
        remedy = "Run it where the lock is: `cd REPOSITORY && tsd doctor`."
        return Check("packages", "warning", f"no {LOCK} in this folder to compare the packages with", remedy)
    try:
        pins = read_lock(lock)
    except (InputError, OSError) as error:
        return Check("packages", "error", sentence(error), f"Take the repository's: `git checkout HEAD {LOCK}`.")
    installed: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:  # a folder that a broken installation left has none
            installed.setdefault(canonicalize_name(name), distribution.version)
    other_build = "+" in installed.get("torch", "")
    wrong = []
    for name, version in pins.items():
        if other_build and name.startswith(_OF_ONE_BUILD):
            continue
        if name not in installed:
            wrong.append(f"{name} is missing")
        elif not _fits(name, installed[name], version):
            wrong.append(f"{name} is {installed[name]}, not {version}")
    if wrong:
        named = ", ".join(wrong[:_NAMED]) + (f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")
        finding = f"{len(wrong)} of {len(pins)} packages are not those of {LOCK}: {named}"
        return Check("packages", "error", finding, SETUP)
    finding = f"{len(pins)} packages are those of {LOCK}, torch {installed.get('torch', 'is not among them')}"
    return Check("packages", "ok", finding)


def read_lock(path: Path) -> dict[str, str]:
    """Name → version of what a lock pins for this machine and this Python.

    Raises:
        InputError: a line that is no pin, a package that is pinned twice, no pin at all; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}") from None
    pins: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line[0] in " \t#-":
            continue  # a hash, an option or a comment
        try:
            requirement = Requirement(line.rstrip(" \\"))
            (specifier,) = requirement.specifier
            Version(specifier.version)
        except (InvalidRequirement, InvalidVersion, ValueError):
            raise InputError(f"{path}: line {number}: expected name==version, got {line!r}") from None
        if specifier.operator != "==":
            raise InputError(f"{path}: line {number}: expected name==version, got {line!r}")
        if requirement.marker is None or requirement.marker.evaluate():
            name = canonicalize_name(requirement.name)
            if name in pins:
                raise InputError(f"{path}: line {number}: {name} is pinned twice, {pins[name]} and {specifier.version}")
            pins[name] = specifier.version
    if not pins:
        raise InputError(f"{path}: no name==version in it")
    return pins


def _fits(name: str, installed: str, pinned: str) -> bool:
    try:
        found, wanted = Version(installed), Version(pinned)
    except InvalidVersion:
        return installed == pinned
    return found.public == wanted.public if name in BUILT_FOR_CUDA else found == wanted


def mmcv_operators(context: Context) -> Check:
    """Whose operators mmcv runs; a compiled mmcv must have CUDA where there are GPUs."""
    import torch

    from tsd.ops import mmcv_ext

    try:
        origin = mmcv_ext.origin()
    except InputError as error:
        return Check("mmcv", "error", str(error).split(": run")[0], f"Put them in place: `{mmcv_ext.INSTALL}`.")
    if origin == "torchvision":
        return Check("mmcv", "ok", "its operators are torchvision's")
    from mmcv.ops import get_compiling_cuda_version

    cuda = get_compiling_cuda_version()
    if cuda != "not available":
        return Check("mmcv", "ok", f"its operators were compiled, with CUDA {cuda}")
    here = torch.cuda.is_available()
    if not here and not context.gpus:
        return Check("mmcv", "ok", "its operators were compiled, without CUDA, which this suite does not ask for")
    found = importlib.util.find_spec("mmcv._ext")
    place = found.origin if found and found.origin else "mmcv/_ext.*.so"
    finding = f"its operators were compiled without CUDA, and {'there are GPUs' if here else 'the suite asks for GPUs'}"
    remedy = f"Take torchvision's in their place: `rm {place} && {mmcv_ext.INSTALL}`."
    return Check("mmcv", "error" if here else "warning", finding, remedy)
