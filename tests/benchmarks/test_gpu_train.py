"""Training a suite in pieces: stopped and gone on with to the same bits, and never mixed with other devices' runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import gpu_train
import pytest
import torch
import yaml
from clock import Clock

from tests.conftest import ROOT, copy_project, tsd
from tsd.engine import checkpoint
from tsd.engine.identity import data_digest
from tsd.engine.params import load_suite
from tsd.errors import InputError

PATIENT = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit('saved')); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def run_while(code, clock, tmp_path):
    with (tmp_path / "log").open("w") as log:
        status = gpu_train.run_while([sys.executable, "-c", code], clock, 1.0, log)
    return status, (tmp_path / "log").read_text()


def test_a_program_that_ends_in_time_says_its_status(tmp_path):
    assert run_while("print('done')", Clock(1), tmp_path) == (0, "done\n")
    assert run_while("raise SystemExit(2)", Clock(1), tmp_path)[0] == 2


def test_a_program_that_takes_longer_is_told_to_stop_in_time(tmp_path):
    started = time.monotonic()
    assert run_while(PATIENT, Clock(6 / 60), tmp_path) == (None, "saved\n")
    assert 4.5 < time.monotonic() - started < 20


def test_a_program_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_train, "PATIENCE", 0.5)
    assert run_while(DEAF, Clock(6 / 60), tmp_path) == (None, "deaf\n")


def test_the_device_is_asked_for_in_a_copy_and_changes_no_digest(tmp_path, monkeypatch):
    work = tmp_path / "work"
    gpu_train.prepare(work, "demo", "cuda", 3)
    monkeypatch.chdir(work)
    there, here = load_suite("demo"), load_suite("demo", root=ROOT)
    assert (there.resources["gpu"], there.resources["workers"], there.resources["processes"]) == (1, 3, 1)
    assert here.resources["gpu"] == 0
    assert there.settings == here.settings
    assert data_digest(there) == data_digest(here)
    runs = gpu_train.chosen_runs("demo", ["tsd_pc", "baseline"], [])
    assert [(run.experiment, run.seed) for run in runs] == [("tsd_pc", 0), ("baseline", 0)]
    with pytest.raises(InputError, match="holds runs of another device, cuda"):
        gpu_train.prepare(work, "demo", "cpu", None)
    with pytest.raises(InputError, match=r"data.format: expected generated, got coco"):
        gpu_train.prepare(tmp_path / "other", "coco", "cuda", None)


@pytest.fixture
def longer(tmp_path, monkeypatch):
    """A project whose suite ``tiny`` has one experiment of 30 steps."""
    folder = copy_project(tmp_path / "project", monkeypatch)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns(".out", "__pycache__"))
    path = folder / "params/suites/tiny.yaml"
    suite = yaml.safe_load(path.read_text())
    suite["experiments"] = ["tsd_pc"]
    suite["override"]["schedule"]["epochs"] = 10
    suite["monitor"] |= {"val_epochs": 10, "checkpoint_steps": 100}
    path.write_text(yaml.safe_dump(suite))
    return folder


def start(folder, *more):
    command = [sys.executable, "benchmarks/gpu_train.py", "--suite", "tiny", "--device", "cpu", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_stopped_and_gone_on_with_it_ends_with_the_same_bits(longer):
    work = longer / "benchmarks/.out/train-cpu"
    process = start(longer, "--minutes", "60")
    deadline = time.monotonic() + 900
    while not any('"step": 5,' in log.read_text() for log in work.glob("results/tiny/runs/tsd_pc/*/seed0/log.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 3, output
    assert "left: tsd_pc seed0" in output
    (run,) = work.glob("results/tiny/runs/tsd_pc/*/seed0")
    assert json.loads((run / "status.json").read_text())["status"] == "KILLED"
    assert not (run / "checkpoint.pth").exists()
    stopped = max(int(path.stem.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*.pth"))
    assert 5 <= stopped < 30
    assert f"step {stopped} of 30" in output

    process = start(longer, "--out", "metrics", "--minutes", "60")
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    assert "1 of 1 runs are done" in output
    summary = json.loads((longer / "metrics/summary.json").read_text())
    ((name, facts),) = summary["runs"].items()
    assert facts["step"] == facts["steps"] == 30
    metrics = json.loads((longer / f"metrics/tiny/{name}.json").read_text())
    assert metrics["metrics"]["AP"] == facts["AP"]

    whole = longer.parent / "whole"
    shutil.copytree(work, whole, ignore=shutil.ignore_patterns("results", "logs"))
    done = tsd(
        "train", "--suite", "tiny", "--experiment", "tsd_pc", "--no-mlflow", cwd=whole, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    weights = [checkpoint.load(each / run.relative_to(work) / "checkpoint.pth")["state_dict"] for each in (work, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_without_time_nothing_is_begun(longer):
    process = start(longer, "--minutes", "0.1")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 3, output
    assert "time over" in output
    assert not (longer / "benchmarks/.out/train-cpu/data").exists()


def test_an_experiment_that_is_not_there_is_named(longer):
    process = start(longer, "--experiments", "tsd_p")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "did you mean 'tsd_pc'" in output
