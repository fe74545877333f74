"""Triton's kernels compiled here. Without a GPU they run through Triton's interpreter, which compiles nothing."""

import os

import torch

from tests.doctor.conftest import context
from tsd.doctor import kernels

CPU = torch.device("cpu")


def test_without_a_gpu_they_are_not_needed(examined, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert examined("Triton", context()).only("ok").finding == "not needed: no GPU here"


def with_a_gpu_in_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    real = kernels.trial
    monkeypatch.setattr(kernels, "trial", lambda device: real(CPU))


def test_they_are_compiled_in_an_empty_cache_and_run(examined, monkeypatch):
    with_a_gpu_in_name(monkeypatch)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", "kept")
    seen = []
    real = kernels.outcome
    monkeypatch.setattr(kernels, "outcome", lambda *given: seen.append(os.environ["TRITON_CACHE_DIR"]) or real(*given))
    assert "compile and run" in examined("Triton", context()).only("ok").finding
    assert os.environ["TRITON_CACHE_DIR"] == "kept"
    assert "tsd-doctor-" in seen[0]
    assert not os.path.exists(seen[0])


def test_where_they_do_not_run_what_is_missing_is_named(examined, monkeypatch, tmp_path):
    with_a_gpu_in_name(monkeypatch)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # so they do not: this is a CPU
    line = examined("Triton", context()).only("error")
    assert "do not run on cpu" in line.finding
    assert "missing" not in line.finding
    assert "rm -rf" in line.remedy
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    line = examined("Triton", context()).only("error")
    assert f"missing on this node: a C compiler (gcc) and Python's header {tmp_path / 'Python.h'}" in line.finding
    assert "module load gcc" in line.remedy
    assert "python3-dev" in line.remedy


def test_a_cache_on_a_network_file_system_is_a_warning(examined, monkeypatch, tmp_path, mounted):
    with_a_gpu_in_name(monkeypatch)
    monkeypatch.setattr(kernels, "trial", lambda device: [])
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "home"))
    assert examined("Triton", context()).lines == []
    mounted(tmp_path / "home", "nfs4")
    line = examined("Triton", context()).only("warning")
    assert f"{tmp_path / 'home/.triton/cache'} is on nfs4" in line.finding
    assert "export TRITON_CACHE_DIR=/tmp/$USER/triton" in line.remedy
