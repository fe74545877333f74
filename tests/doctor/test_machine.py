"""The GPUs, and whether the driver fits torch's CUDA. No GPU is needed: what torch would say is put in its mouth."""

from types import SimpleNamespace

import pytest
import torch

from tests.doctor.conftest import context
from tsd.doctor import machine
from tsd.doctor.processes import Processes

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Jan 25 20:04:23 UTC 2024\nGCC version: gcc 12.2.0\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22)\n"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch, tmp_path):
    """A machine without a GPU, out of any job."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def driver(tmp_path):
    return lambda version, text=CLOSED: (tmp_path / "version").write_text(text.format(version))


@pytest.fixture
def cards(monkeypatch):
    """So many GPUs of 80 GiB."""

    def put(count):
        card = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", total_memory=80 * 2**30)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)

    return put


@pytest.mark.parametrize("text", [CLOSED, OPEN])
@pytest.mark.parametrize("version", ["535.161.08", "580.65.06", "525.60"])
def test_the_drivers_version_is_read(driver, text, version):
    driver(version, text)
    assert machine.driver_version() == version


def test_the_drivers_version_is_asked_of_nvidia_smi_where_there_is_no_file(program):
    assert machine.driver_version() is None
    program("nvidia-smi", "echo 550.54.15; echo 550.54.15")
    assert machine.driver_version() == "550.54.15"
    program("nvidia-smi", "echo 'Failed to initialize NVML' >&2; exit 9")
    assert machine.driver_version() is None


def test_a_driver_too_old_for_torch_is_an_error_with_the_build_that_fits(examined, driver):
    driver("535.161.08")
    line = examined("GPU", context(gpu=8)).only("error")
    assert line.finding == "driver 535.161.08 is too old for torch's CUDA 13.0, which needs 580 or newer"
    assert line.remedy == "Take torch built for it: `TORCH_BACKEND=cu126 make setup`."
    examined("GPU", context()).only("warning")  # nothing of a suite without GPUs fails for it


def test_a_driver_too_old_for_any_build_needs_the_administrators(examined, driver):
    driver("470.82.01")
    assert "driver 525 or newer" in examined("GPU", context(gpu=8)).only("error").remedy


def test_an_older_build_runs_on_an_older_driver(examined, driver, cards, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    driver("535.161.08")
    cards(8)
    line = examined("GPU", context(gpu=8)).only("ok")
    assert line.finding == "CUDA 12.6 on driver 535.161.08; 8 × NVIDIA A100-SXM4-80GB (80 GiB)"


def test_gpus_that_slurm_grants_and_torch_cannot_use_are_not_asked_for_again(examined, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "none in this Slurm job" in examined("GPU", context(gpu=8)).only("error").finding
    monkeypatch.setenv("SLURM_STEP_GPUS", "0,1")
    line = examined("GPU", context(gpu=8)).only("error")
    assert line.finding.startswith("Slurm gives 0,1 to this process, and torch can use none")
    assert "`nvidia-smi`" in line.remedy


def test_gpus_in_name_only_are_not_looked_for(examined, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    examined("GPU", context(gpu=8, device="cpu")).only("ok")


def test_no_gpu_is_well_if_none_is_asked_for(examined):
    assert examined("GPU", context()).only("ok").finding == "none here, and suite tiny asks for none"


def test_no_gpu_on_a_laptop_says_where_to_go(examined):
    line = examined("GPU", context(gpu=16, nodes=2)).only("warning")
    assert "suite tiny asks for 16 GPUs" in line.finding
    assert "`srun --nodes=2 --ntasks-per-node=8 --gres=gpu:8 tsd doctor --suite tiny`" in line.remedy


def test_no_gpu_in_a_job_is_an_error(examined, monkeypatch, driver):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    driver("580.65.06")
    line = examined("GPU", context(gpu=8)).only("error")
    assert line.finding == "none in this Slurm job, and suite tiny asks for 8 GPUs; driver 580.65.06 is there"
    assert "--gres=gpu:8" in line.remedy


def test_torch_without_cuda(examined, monkeypatch, driver):
    monkeypatch.setattr(torch.version, "cuda", None)
    examined("GPU", context()).only("ok")
    examined("GPU", context(gpu=1)).only("warning")
    driver("580.65.06")
    assert "`rm -f .venv/.ready && TORCH_BACKEND= make setup`" in examined("GPU", context(gpu=1)).only("error").remedy


def test_fewer_gpus_than_a_node_of_a_training_has(examined, cards):
    cards(1)
    line = examined("GPU", context(gpu=16, nodes=2)).only("warning")
    assert "asks for 8 on a node" in line.finding


def test_each_of_several_processes_has_a_gpu_of_its_own(examined, cards):
    cards(2)
    third = Processes(rank=0, world=16, local_rank=2, launcher="torchrun", host="n1")
    line = examined("GPU", context(gpu=16, nodes=2, here=third)).only("error")
    assert line.finding == "process 2 of n1, counted from 0, has no GPU of its own: it sees 2"
    second = Processes(rank=0, world=16, local_rank=1, launcher="torchrun", host="n1")
    assert "1 × NVIDIA" in examined("GPU", context(gpu=16, nodes=2, here=second)).only("ok").finding
    cards(1)
    bound = Processes(rank=0, world=16, local_rank=5, launcher="srun", host="n1")  # srun --gpus-per-task=1
    examined("GPU", context(gpu=16, nodes=2, here=bound)).only("ok")
