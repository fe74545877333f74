"""Python, the packages of the lock, and whose operators mmcv runs."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.doctor.conftest import context
from tsd.doctor import environment
from tsd.ops import mmcv_ext


@pytest.fixture
def lock(project):
    """The project's lock in the copy, where a test may change it."""
    return Path(shutil.copy(ROOT / "requirements.lock", project))


def edit(lock, before, after):
    text = lock.read_text()
    assert before in text
    lock.write_text(text.replace(before, after, 1))


def test_this_environment_is_the_locks(examined, lock):
    assert "Python 3." in examined("Python", context()).only("ok").finding
    assert "packages are those of requirements.lock" in examined("packages", context()).only("ok").finding


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0)])
def test_another_python_is_an_error(examined, monkeypatch, version):
    monkeypatch.setattr(environment.sys, "version_info", version)
    line = examined("Python", context()).only("error")
    assert "expected 3.11 to 3.13" in line.finding
    assert "make setup PYTHON=python3.13" in line.remedy


def test_packages_that_differ_from_the_lock_are_named_and_the_rest_counted(examined, lock):
    for name in ("pandas", "requests", "tqdm", "pyarrow", "mlflow"):
        edit(lock, f"\n{name}==", f"\n{name}==99.")
    line = examined("packages", context()).only("error")
    assert line.finding.startswith("5 of ")
    assert "mlflow is " in line.finding
    assert "not 99." in line.finding
    assert line.finding.endswith("and 1 more")
    assert line.remedy == "Install the lock again: `rm -f .venv/.ready && make setup`."


def test_a_package_that_is_missing_is_named(examined, lock):
    edit(lock, "addict==", "nobody-has-this==1.0\naddict==")
    assert "nobody-has-this is missing" in examined("packages", context()).only("error").finding


def test_a_pin_for_another_machine_does_not_count(examined, lock):
    edit(lock, "addict==", "nobody-has-this==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:0\naddict==")
    examined("packages", context()).only("ok")


def test_torch_for_another_cuda_is_the_locks_and_so_is_what_it_brings(examined, lock, monkeypatch):
    real = list(environment.importlib.metadata.distributions())

    class Other:
        metadata, version = {"Name": "torch"}, f"{torch.__version__.split('+')[0]}+cu126"

    without = [one for one in real if not one.metadata["Name"].startswith(("nvidia-", "cuda-"))]
    monkeypatch.setattr(environment.importlib.metadata, "distributions", lambda: [Other, *without])
    assert "+cu126" in examined("packages", context()).only("ok").finding
    Other.version = "2.0.0+cu126"
    assert "torch is 2.0.0+cu126" in examined("packages", context()).only("error").finding


def test_a_line_that_is_no_pin_is_named(examined, lock):
    edit(lock, "addict==", "addict>=")
    assert "requirements.lock: line 1: expected name==version" in examined("packages", context()).only("error").finding


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no name==version in it"),
        ("# nothing\n", "no name==version in it"),
        ("torch==2.0\nTorch==2.1\n", "line 2: torch is pinned twice, 2.0 and 2.1"),
        ("<<<<<<< HEAD\ntorch==2.0\n", "line 1: expected name==version"),
        ("torch==2.*\n", "line 1: expected name==version"),
        ("torch==2.0,==2.1\n", "line 1: expected name==version"),
        (b"torch==2.0\n\xff", "not UTF-8 text at byte 11"),
    ],
)
def test_a_broken_lock_is_to_be_taken_from_the_repository(examined, lock, text, said):
    lock.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = examined("packages", context()).only("error")
    assert said in line.finding
    assert "`git checkout HEAD requirements.lock`" in line.remedy


def test_two_pins_for_different_machines_are_one(examined, lock):
    marked = "addict==0 ; sys_platform == 'win32'\naddict=="
    edit(lock, "addict==", marked)
    examined("packages", context()).only("ok")


def test_an_installed_version_of_no_known_form_is_another_one(examined, lock, monkeypatch):
    real = list(environment.importlib.metadata.distributions())

    class Odd:
        metadata, version = {"Name": "addict"}, "of my own"

    class Nameless:
        metadata, version = {"Name": None}, None

    monkeypatch.setattr(environment.importlib.metadata, "distributions", lambda: [Odd, Nameless, *real])
    assert "addict is of my own, not " in examined("packages", context()).only("error").finding


def test_without_a_lock_it_warns(examined):
    line = examined("packages", context()).only("warning")
    assert "no requirements.lock in this folder" in line.finding


def test_the_operators_are_torchvisions(examined):
    assert examined("mmcv", context()).only("ok").finding == "its operators are torchvision's"


def test_mmcv_without_operators_is_an_error(examined, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mmcv._ext" else real(name))
    line = examined("mmcv", context()).only("error")
    assert line.finding == "mmcv has no operators in this environment"
    assert "`python -m tsd.ops.mmcv_ext`" in line.remedy


def test_operators_compiled_without_cuda_will_not_do_for_gpus(examined, monkeypatch):
    monkeypatch.setattr(mmcv_ext, "origin", lambda: "compiled")  # whose own word for its CUDA is "not available" here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "without CUDA" in examined("mmcv", context()).only("ok").finding
    line = examined("mmcv", context(gpu=8)).only("warning")
    assert "the suite asks for GPUs" in line.finding
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = examined("mmcv", context()).only("error")
    assert "there are GPUs" in line.finding
    assert "_ext.py && python -m tsd.ops.mmcv_ext" in line.remedy
