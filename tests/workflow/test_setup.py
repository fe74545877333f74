"""`make setup`: when it runs, what it is told, and what it refuses before it changes anything."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path):
    """A project that was set up, as far as make can see."""
    (tmp_path / "workflow").mkdir()
    for name in ("requirements.lock", "pyproject.toml", "workflow/setup.sh", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.ready").touch()
    (tmp_path / ".venv/.torch_backend").write_text("\n")
    return tmp_path


def make(folder, *arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "TORCH_BACKEND"} | variables
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_what_is_set_up_is_left_alone_until_the_lock_changes(folder):
    assert "setup.sh" not in make(folder, "-n", "setup").stdout
    ready = (folder / ".venv/.ready").stat().st_mtime
    os.utime(folder / "requirements.lock", (ready + 1, ready + 1))
    assert "setup.sh" in make(folder, "-n", "setup").stdout


def test_another_cuda_build_is_set_up_once_and_remembered(folder):
    assert "setup.sh" in make(folder, "-n", "setup", TORCH_BACKEND="cu126").stdout
    (folder / ".venv/.torch_backend").write_text("cu126\n")
    assert "setup.sh" not in make(folder, "-n", "setup", TORCH_BACKEND="cu126").stdout
    assert "setup.sh" not in make(folder, "-n", "test").stdout
    (folder / ".venv/.ready").unlink()
    (folder / "workflow/setup.sh").write_text('echo "backend $TORCH_BACKEND"; exit 1\n')
    assert "backend cu126" in make(folder, "test").stdout


@pytest.mark.parametrize("backend", ["auto", "AUTO", "cuda; false"])
def test_the_build_of_the_machine_at_hand_is_refused_and_nothing_changed(folder, backend):
    done = make(folder, "setup", TORCH_BACKEND=backend)
    assert done.returncode != 0
    assert f"TORCH_BACKEND={backend}: name the CUDA build, such as cu126" in done.stderr
    assert (folder / ".venv/.ready").exists()


def test_another_python_is_refused_with_those_that_do(folder, tmp_path):
    old = tmp_path / "python3"
    old.write_text(
        f"#!/bin/sh\nexec {shutil.which('python3')} -c "
        '"import sys; sys.version_info = (3, 10); exec(sys.stdin.read())"\n'
    )
    old.chmod(0o755)
    (folder / ".venv/.ready").unlink()
    done = make(folder, "setup", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr


@pytest.mark.parametrize("broken", ["no pip", "dangling", "file", "old"])
def test_what_an_interrupted_set_up_left_is_made_anew(folder, broken):
    """As far as the first package: a lock whose uv is none ends it there."""
    (folder / "requirements.lock").write_text("uv==0.0.0 --hash=sha256:00\n")
    venv = folder / ".venv"
    shutil.rmtree(venv)
    if broken == "file":
        venv.write_text("")
    else:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    if broken == "dangling":
        python.unlink()
        python.symlink_to("/nowhere/python3")
    if broken == "old":
        python.unlink()
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
    done = make(folder, "setup", f"PYTHON={sys.executable}")
    assert "uv==0.0.0" in done.stdout + done.stderr
    assert subprocess.run([python, "-c", "import pip"]).returncode == 0
