"""Shared places: the real data if there is any, and small copies of the repository.

What many tests read is made once for all of pytest's processes (`once`). Our commands run in processes of their own,
which are forked from one that has imported PyTorch and mmdet already (`tsd`): that import takes seconds.
"""

import atexit
import fcntl
import functools
import io
import json
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver, reduction
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its kernels then run through its interpreter.
    os.environ["TRITON_INTERPRET"] = "1"
# Containers often forbid to keep bytecode: every process would then compile mmdet anew, for ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("Snakefile", "workflow", "params", "data.dvc", "dvc.yaml", ".dvcignore", "slurm", "tsd", "pyproject.toml")
LONGEST = (
    "workflow/test_pipeline.py",
    "engine/test_launch.py",
    "workflow/test_openimages.py",
    "engine/test_faults.py",
    "engine/test_every_experiment.py",
    "engine/test_distributed.py",
    "tracking/test_server.py",
    "engine/test_training.py",
    "tracking/test_mirror.py",
    "workflow/test_voc.py",
)

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "mmdet.apis",
        "mmdet.models",
        "mmengine.runner",
        "mlflow.tracking",
        "matplotlib.pyplot",
        "pandas",
        "pyarrow.parquet",
        "pycocotools.cocoeval",
    ]
)
_alone = threading.Lock()
"""Starting one process asks how the others are, which two threads must not do at once."""
_shared: list[Path] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process works alone for long at the end."""
    turns = {ROOT / "tests" / name: turn for turn, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Know the folder that all of pytest's processes share."""
    own = tmp_path_factory.getbasetemp()
    _shared.append(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder that ``make`` fills in one of pytest's processes, for all. Who changes something takes a copy."""
    folder, done = (_shared[0] / f"once-{name}{end}" for end in ("", ".done"))
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


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
    """Copy the sources to ``target``, go there, and put the data of the suite ``tiny`` there."""
    folder = copy_project(target, monkeypatch)
    shutil.copytree(once("scenes", _generate), folder / "data")
    return folder


def _generate(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        project = copy_project(Path(place, "project"), patch)
        done = tsd("data", "generate", "--suite", "tiny", cwd=project)
        assert done.returncode == 0, done.stderr
        shutil.copytree(project / "data", folder, dirs_exist_ok=True)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tsd(
    *arguments: object,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 600,
    fresh: bool = False,
) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, which has imported nothing yet if it is to be ``fresh``."""
    words = [*map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    if fresh:
        command = [sys.executable, "-m", "tsd.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = fork(words, cwd or Path.cwd(), environment, (out.fileno(), error.fileno()))
        if not wait([process.sentinel], timeout):
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        status = end(process)
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(io.TextIOWrapper(file).read())
        return subprocess.CompletedProcess(words, status, *texts)


def fork(words: list[str], cwd: Path, environment: Mapping[str, str], outputs: tuple[int, int]) -> BaseProcess:
    """Start the command line in a forked process with these files as its standard output and error."""
    start_forks()
    files = [_Descriptor(number) for number in outputs]
    process = FORKS.Process(target=_forked, args=(words, cwd, dict(environment), files))
    with _alone:
        process.start()
    return process


@functools.cache
def start_forks() -> None:
    """Start the process that is forked: in the repository, whose sources it then has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(ROOT)
        forkserver.ensure_running()


def end(process: BaseProcess) -> int:
    """Wait for its end; returns its exit status."""
    with _alone:
        process.join()
    return process.exitcode


class _Descriptor:
    """An open file that a forked process gets too."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self):
        return _detach, (reduction.DupFd(self.number),)


def _detach(file) -> int:
    return file.detach()


def _forked(words: list[str], cwd: Path, environment: dict[str, str], outputs: list[int]) -> None:
    """What ``python -m tsd.cli`` does, in a forked process."""
    for target, number in enumerate(outputs, start=1):
        os.dup2(number, target)
        os.close(number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = words
    sys.path.insert(0, str(cwd))
    try:
        runpy.run_module("tsd.cli", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [1, 2])
    server.sendall(request)
    sys.exit(int(server.recv(8)))
"""
"""``tsd`` for a shell: asks pytest's process for a forked one."""


@functools.cache
def forking() -> str:
    """A folder with a program ``tsd`` for a shell's path: Snakemake starts it a dozen times in a run."""
    start_forks()
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    program, address = Path(folder.name, "tsd"), f"{folder.name}/socket"
    program.write_text(PROGRAM.format(python=sys.executable, address=address))
    program.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    return folder.name


def _serve(listener: socket.socket) -> None:
    while True:
        threading.Thread(target=_answer, args=(listener.accept()[0],), daemon=True).start()


def _answer(client: socket.socket) -> None:
    """Run one command; it ends with the program that asked for it."""
    with client:
        size, outputs, *_ = socket.recv_fds(client, 8, 2)
        words, cwd, environment = json.loads(client.makefile("rb").read(int.from_bytes(size, "big")))
        process = fork(words, Path(cwd), environment, tuple(outputs))
        for number in outputs:
            os.close(number)
        if client in wait([process.sentinel, client]):
            process.kill()
        wait([process.sentinel])
        status = end(process)
        with suppress(BrokenPipeError):
            client.sendall(str(status if status >= 0 else 128 - status).encode())
