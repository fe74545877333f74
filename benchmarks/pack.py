"""Pack the wheels that a GPU machine without a network lacks, with a script that installs them there.

    python benchmarks/pack.py [--out benchmarks/.out/wheels] [--present benchmarks/present.txt]

For CPython 3.12 on 64-bit x86 Linux with torch and torchvision. Packed are mmcv, mmdet, mmengine and this project, all
pure, and what they need of the lock to train and evaluate, but for what ``--present`` lists. Versions and hashes are
the lock's. A package that is published as source only is built by pip away from torch, so that nothing is compiled.
There, at the root of the sources:

    source FOLDER/install.sh [SITE]     # default: FOLDER/site
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

LIMIT_MB = 60
"""What the wheels may weigh together."""

LEFT_OUT = {"mlflow", "psycopg2-binary", "snakemake", "snakemake-executor-plugin-slurm", "dvc"}
"""Dependencies of the project that training, prediction and evaluation do without."""

SAME = {"opencv-python": "opencv-python-headless"}
"""A package whose modules another one has too."""

TARGET = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "extra": "",
}
"""Environment markers of the machine."""

PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), "manylinux2014_x86_64", "linux_x86_64"]
"""Wheels of any of these run there; pip takes each name literally."""

INSTALL = """\
#!/usr/bin/env bash
# Install the wheels of this folder without a network, and put mmcv's operators in place:
#   source {folder}/install.sh [SITE]     (sourced, so that PYTHONPATH stays set; $PYTHON is python3 unless set)
_install_wheels() {{
  local here site python=${{PYTHON:-python3}}
  here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd) || return
  mkdir -p "${{1:-$here/site}}" && site=$(cd "${{1:-$here/site}}" && pwd) || return
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-index --no-deps \\
    --no-compile --no-cache-dir --upgrade --target "$site" "$here"/*.whl || return
  export PYTHONPATH="$site${{PYTHONPATH:+:$PYTHONPATH}}"
  "$python" -m tsd.ops.mmcv_ext || return
  "$python" -c 'import mmcv.ops, mmdet.models, tsd.models' || return
  echo "installed in $site; PYTHONPATH=$PYTHONPATH"
}}
_install_wheels "$@"
"""


class PackError(Exception):
    """Something can't be packed; the message says what and why."""


@dataclass(frozen=True)
class Pin:
    """A package of the lock."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def lines(self) -> str:
        """As a requirements file has it."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash={digest}" for digest in self.hashes)]) + "\n"


def read_lock(text: str) -> dict[str, Pin]:
    """The pins of a requirements file that the machine's environment asks for, by canonical name."""
    pins = {}
    for entry in text.replace("\\\n", " ").splitlines():
        entry = entry.partition("#")[0].strip()
        if not entry:
            continue
        hashes = tuple(re.findall(r"--hash=(\S+)", entry))
        requirement = Requirement(entry.partition(" --hash=")[0].strip())
        if requirement.marker is not None and not requirement.marker.evaluate(TARGET):
            continue
        (version,) = (clause.version for clause in requirement.specifier)
        name = canonicalize_name(requirement.name)
        pins[name] = Pin(name, version, hashes)
    return pins


def read_present(text: str) -> set[str]:
    """Canonical names of a list with one package a line."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {canonicalize_name(re.split(r"[=<>!~ @;\[]", line)[0]) for line in lines if line}


def needed(requirements: Iterable[str]) -> list[str]:
    """Canonical names of the requirements that hold on the machine; extras are not asked for."""
    found = [Requirement(line) for line in requirements]
    return [canonicalize_name(each.name) for each in found if each.marker is None or each.marker.evaluate(TARGET)]


def choose(
    roots: Iterable[str], pins: dict[str, Pin], present: set[str], requirements: Callable[[Pin], Iterable[str]]
) -> list[Pin]:
    """What has to be packed: the roots and all that they need in turn, but for what is there.

    Args:
        roots: canonical names.
        pins: of the lock.
        present: what the machine has; nothing is asked about what that needs.
        requirements: of a package, as its metadata gives them.

    Raises:
        PackError: something is neither there nor in the lock.
    """
    chosen: dict[str, Pin] = {}
    waiting = [(name, "pyproject.toml") for name in roots]
    while waiting:
        name, by = waiting.pop(0)
        if name in chosen or name in present or SAME.get(name) in present:
            continue
        if name not in pins:
            raise PackError(f"{name}, which {by} needs, is neither in the lock nor in the list of what is there")
        chosen[name] = pins[name]
        waiting += [(other, name) for other in needed(requirements(pins[name]))]
    return sorted(chosen.values(), key=lambda pin: pin.name)


def project_roots(pyproject: str) -> list[str]:
    """What the project itself needs to train and evaluate."""
    return [name for name in needed(tomllib.loads(pyproject)["project"]["dependencies"]) if name not in LEFT_OUT]


def wheel_requirements(wheel: Path) -> list[str]:
    """``Requires-Dist`` of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


class Fetcher:
    """Brings wheels of the lock into a folder, by pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, pin: Pin) -> list[str]:
        """Fetch one, or build it, and say what it needs."""
        print(f"  {pin.name} {pin.version}", file=sys.stderr, flush=True)
        return wheel_requirements(self.fetch(pin))

    def fetch(self, pin: Pin) -> Path:
        """A wheel for the machine, its hash checked; built from the source distribution if there is none.

        Raises:
            PackError: neither can be had, or what was built is not pure.
        """
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder, "requirements.txt")
            listed.write_text(pin.lines, encoding="utf-8")
            common = ["--no-deps", "--require-hashes", "-r", str(listed)]
            target = [f"--platform={name}" for name in PLATFORMS]
            target += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
            failed = pip("download", *common, *target, f"--dest={folder}")
            if failed:
                failed_too = pip("wheel", *common, f"--no-binary={pin.name}", f"--wheel-dir={folder}")
                if failed_too:
                    raise PackError(f"{pin.name} {pin.version}: no wheel: {failed}; and from source: {failed_too}")
            return self._keep(Path(folder), pure=bool(failed))

    def build(self, root: Path) -> Path:
        """A wheel of the project, built from a copy: the tree stays as it is."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, "source")
            shutil.copytree(root / "tsd", copy / "tsd", ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(root / name, copy / name)
            if failed := pip("wheel", "--no-deps", f"--wheel-dir={folder}", str(copy)):
                raise PackError(f"the project: {failed}")
            return self._keep(Path(folder), pure=True)

    def _keep(self, folder: Path, pure: bool) -> Path:
        (wheel,) = folder.glob("*.whl")
        if pure and not wheel.name.endswith("-none-any.whl"):
            raise PackError(f"{wheel.name}: built from source, and not pure: it would run on this machine only")
        return Path(shutil.move(wheel, self.folder / wheel.name))


def pip(*arguments: str) -> str | None:
    """Run pip; returns what it says if it fails."""
    spoiling = ("MMCV_WITH_OPS", "FORCE_CUDA", "PIP_NO_BUILD_ISOLATION", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if key not in spoiling}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    return (errors or done.stderr.splitlines() or ["pip failed"])[-1].removeprefix("ERROR: ")


def check_size(wheels: list[Path], limit_mb: float = LIMIT_MB) -> float:
    """Megabytes of all wheels.

    Raises:
        PackError: more than the limit; names the largest.
    """
    total = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    if total > limit_mb:
        largest = sorted(wheels, key=lambda wheel: -wheel.stat().st_size)[:3]
        named = ", ".join(f"{wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB)" for wheel in largest)
        raise PackError(
            f"the wheels weigh {total:.1f} MB together, more than {limit_mb} MB; the largest are {named}: "
            "list what the machine has in the file of --present"
        )
    return total


def pack(out: Path, present: set[str]) -> list[Path]:
    """Fill ``out`` with the wheels and ``install.sh``; nothing is replaced before all is there.

    Raises:
        PackError: see :func:`choose`, :class:`Fetcher` and :func:`check_size`.
    """
    pins = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as folder:
        fetcher = Fetcher(Path(folder))
        choose(project_roots((ROOT / "pyproject.toml").read_text(encoding="utf-8")), pins, present, fetcher)
        fetcher.build(ROOT)
        check_size(list(Path(folder).glob("*.whl")))
        for old in out.glob("*.whl"):
            old.unlink()
        wheels = sorted(Path(shutil.move(wheel, out / wheel.name)) for wheel in Path(folder).glob("*.whl"))
    script = out / "install.sh"
    script.write_text(INSTALL.format(folder=out.name), encoding="utf-8")
    script.chmod(0o755)
    return wheels


def main() -> None:
    """Pack, and print each wheel with its size."""
    parser = argparse.ArgumentParser(description="Pack the wheels that a GPU machine without a network lacks.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / ".out" / "wheels")
    parser.add_argument("--present", type=Path, default=ROOT / "benchmarks" / "present.txt", help="a name a line")
    args = parser.parse_args()
    try:
        wheels = pack(args.out, read_present(args.present.read_text(encoding="utf-8")))
    except (PackError, OSError) as error:
        sys.exit(f"pack.py: {error}")
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 1e6:8.2f} MB  {wheel.name}")
    print(f"{check_size(wheels):8.2f} MB  {len(wheels)} wheels in {args.out}, of at most {LIMIT_MB} MB")
    print(f"there, at the root of the sources: source {args.out.name}/install.sh")


if __name__ == "__main__":
    main()
