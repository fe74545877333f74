"""Shared places: the real data if there is any, and small copies of the repository."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its kernels then run through its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("Snakefile", "workflow", "params", "data.dvc", "dvc.yaml", ".dvcignore", "slurm", "tsd", "pyproject.toml")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with train2017/, val2017/ and annotations/ of real COCO pictures."""
    place = os.environ.get("TSD_REAL_DATA")
    if not place:
        pytest.skip("TSD_REAL_DATA is not set")
    return Path(place)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's sources in an empty folder, which is the current one."""
    return copy_project(tmp_path / "project", monkeypatch)


def copy_project(target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the sources to ``target`` and go there."""
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target / name)
    monkeypatch.chdir(target)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return target


def project_with_scenes(target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the sources to ``target``, go there, and generate the data of the suite ``tiny``."""
    folder = copy_project(target, monkeypatch)
    done = tsd("data", "generate", "--suite", "tiny", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tsd(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "tsd.cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)
