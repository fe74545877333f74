"""Training for real, on tiny scenes: resuming to the same bits, and every fault with a clear end."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.models.backbones import ResNet

from tests.conftest import once, project_with_scenes, tsd
from tsd.engine import checkpoint
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite

TRAIN = ("train", "--suite", "tiny", "--experiment", "tsd_pc", "--no-mlflow")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A project with the tiny suite's data."""
    return project_with_scenes(tmp_path / "project", monkeypatch)


def run_folder(experiment="tsd_pc"):
    suite = load_suite("tiny")
    return get_run(suite, experiment, 0, data_digest(suite)).folder


def result(folder: Path):
    """Weights and log figures of a finished run, times left out."""
    content = checkpoint.load(folder / "checkpoint.pth")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("time")
        line.pop("seconds_per_step", None)
    return content["state_dict"], lines


def assert_same(first, second):
    weights, lines = first
    assert lines == second[1]
    assert weights.keys() == second[0].keys()
    assert all(torch.equal(value, second[0][key]) for key, value in weights.items())


@pytest.fixture(scope="module")
def uninterrupted():
    """Weights and log of a training that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(once("trained", train_whole) / "project")
        return result(run_folder())


def train_whole(folder: Path) -> None:
    """The training in ``folder``/project, in a process that has imported nothing before."""
    with pytest.MonkeyPatch.context() as patch:
        project_with_scenes(folder / "project", patch)
        done = tsd(*TRAIN, fresh=True)
        assert done.returncode == 0, done.stderr


def train_and_kill(step: int, delay: float = 0.0) -> None:
    """Start the training and kill it hard, ``delay`` seconds after log line ``step``."""
    log = run_folder() / "log.jsonl"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tsd.cli", *TRAIN], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and f'"step": {step},' in log.read_text():
                time.sleep(delay)
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)


def test_killed_and_resumed_it_ends_with_the_same_bits(tiny, uninterrupted):
    train_and_kill(step=5)
    folder = run_folder()
    assert not (folder / "checkpoint.pth").exists()
    assert json.loads((folder / "status.json").read_text())["status"] == "RUNNING"
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"time": 1, "step": 6, "lo')  # a line cut off by the kill
    done = tsd(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    assert_same(result(folder), uninterrupted)
    assert json.loads((folder / "status.json").read_text())["status"] == "FINISHED"


@pytest.mark.slow
def test_killed_at_five_random_moments_it_ends_with_the_same_bits(tiny, uninterrupted):
    rng = random.Random(os.environ.get("TSD_KILL_SEED", "2020"))
    for step in sorted(rng.sample(range(1, 6), 5)):
        train_and_kill(step, delay=rng.uniform(0, 1.0))
        if (run_folder() / "checkpoint.pth").exists():
            break
    assert tsd(*TRAIN).returncode == 0
    assert_same(result(run_folder()), uninterrupted)


def test_a_loss_that_becomes_nan_stops_the_run_and_marks_it(tiny):
    path = tiny / "params/suites/tiny.yaml"
    suite = yaml.safe_load(path.read_text())
    suite["override"]["schedule"] |= {"optimizer": "sgd", "lr": 1e30, "clip_norm": 1e30}
    path.write_text(yaml.safe_dump(suite))
    done = tsd(*TRAIN)
    assert done.returncode == 1
    assert "DivergedError: " in done.stderr
    assert re.search(r" became \S+ at step \d+ \(epoch \d+\), learning rate \S+; ", done.stderr)
    assert "lower schedule.lr" in done.stderr
    status = json.loads((run_folder() / "status.json").read_text())
    assert status["status"] == "FAILED"
    assert "became" in status["error"]
    for _, saved in checkpoint.steps(run_folder() / "checkpoints"):
        state = checkpoint.load(saved)["state_dict"]
        assert all(torch.isfinite(value.float()).all() for value in state.values()), "a broken state was saved"


def test_a_corrupt_picture_is_named_and_the_run_marked(tiny):
    picture = tiny / "data/tiny/train/000000000003.jpg"
    picture.write_bytes(picture.read_bytes()[:100])
    done = tsd(*TRAIN)
    assert done.returncode == 2
    assert "data/tiny/train/000000000003.jpg: picture 3 is corrupt" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((run_folder() / "status.json").read_text())["status"] == "FAILED"


def test_two_trainings_of_one_run_do_not_mix(tiny):
    import fcntl

    folder = run_folder()
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = tsd(*TRAIN)
    assert done.returncode == 2
    assert "another process is training this run" in done.stderr


def test_a_stale_digest_is_refused(tiny):
    done = tsd(*TRAIN, "--digest", "0123456789ab")
    assert done.returncode == 2
    assert "now resolves to digest" in done.stderr


def test_a_planted_checkpoint_is_refused_on_resume(tiny, tmp_path):
    from tests.engine.test_checkpoint import Payload

    folder = run_folder() / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"state_dict": {}, "meta": Payload(tmp_path / "ran")}, checkpoint.step_path(folder, 3))
    done = tsd(*TRAIN)
    assert done.returncode == 2
    assert "step_00000003.pth: refused" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_missing_pretrained_weights_say_where_they_belong(tiny, monkeypatch):
    path = tiny / "params/suites/tiny.yaml"
    suite = yaml.safe_load(path.read_text())
    suite["override"]["backbone"]["pretrained"] = "resnet18.pth"
    path.write_text(yaml.safe_dump(suite))
    monkeypatch.delenv("TSD_WEIGHTS", raising=False)
    done = tsd(*TRAIN)
    assert done.returncode == 2
    assert "no file resnet18.pth here, and TSD_WEIGHTS is not set" in done.stderr


def test_the_dumped_config_runs_with_mmdets_own_runner_from_the_pretrained_weights(tiny):
    path = tiny / "params/suites/tiny.yaml"
    suite = yaml.safe_load(path.read_text())
    suite["override"]["backbone"] |= {"pretrained": "resnet18.pth", "norm": "frozen_bn", "frozen_stages": 1}
    path.write_text(yaml.safe_dump(suite))
    torch.manual_seed(11)
    torch.save(ResNet(depth=18, base_channels=8, stem_channels=8).state_dict(), tiny / "resnet18.pth")
    done = tsd("config", "--suite", "tiny", "--experiment", "tsd_pc", "--output", "config.py")
    assert done.returncode == 0, done.stderr
    code = (
        "import torch\nfrom mmengine.config import Config\nfrom mmengine.registry import RUNNERS\n"
        "config = Config.fromfile('config.py')\nconfig.train_cfg.max_epochs = 1\nconfig.work_dir = 'work'\n"
        "model = RUNNERS.build(config).train()\nfile = torch.load('resnet18.pth')\n"
        "assert torch.equal(model.backbone.layer1[1].conv2.weight, file['layer1.1.conv2.weight'])\nprint('trained')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "trained" in done.stdout, done.stderr[-2000:]
