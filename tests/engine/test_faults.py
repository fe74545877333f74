"""What machines do to a training: full disks, clocks that jump, files that change, a process with an error.

Kills, NaN and planted files: test_training. Signals, damaged checkpoints, a process that is killed: test_launch.
A server that is away: tests/tracking/test_server.py. The campaign of twenty kills is `pytest -m slow -k twenty`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.conftest import forking, tsd
from tests.engine.test_launch import PUBLISHED, prepared, project_with, start, wait_for_step  # noqa: F401  (a fixture)
from tests.engine.test_training import (  # noqa: F401
    TRAIN,
    assert_same,
    result,
    run_folder,
    tiny,
    uninterrupted,
)
from tests.workflow.test_pipeline import edit, run_to_the_end, snakemake
from tsd.engine import checkpoint
from tsd.tracking.mirror import sync_run
from tsd.tracking.store import tracking_uri
from tsd.tracking.sync import sync_all

FULL = "No space left on device"


@contextmanager
def small_disk(folder: Path, size: int):
    """A file system of so many bytes at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"can't mount a small disk: {done.stderr.strip()}")
    try:
        yield lambda more: subprocess.run(["mount", "-o", f"remount,size={more}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int = 0) -> Path:
    """Leave so many bytes of a file system."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with filler.open("wb") as file:
        file.write(b"\0" * max(0, free - left))
    return filler


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_loses_no_bit(tiny, uninterrupted):  # noqa: F811
    """Room for the two checkpoints that are kept, not for the third that is written before one of them goes."""
    weights = sum(value.numel() * value.element_size() for value in uninterrupted[0].values())
    with small_disk(tiny / "results", round(2.6 * 3 * weights)) as resize:  # AdamW keeps two more of each weight
        done = tsd(*TRAIN)
        assert done.returncode == 1, done.stderr[-2000:]
        assert FULL in done.stderr
        saved = list(checkpoint.steps(run_folder() / "checkpoints"))
        assert len(saved) == 2
        for _, path in saved:
            checkpoint.load(path)  # whole
        assert not (run_folder() / "checkpoint.pth").exists()
        assert not list(run_folder().rglob(".*.tmp*"))
        assert json.loads((run_folder() / "status.json").read_text())["status"] == "FAILED", done.stderr
        resize(64 << 20)
        done = tsd(*TRAIN)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "resuming after step" in done.stderr
        assert_same(result(run_folder()), uninterrupted)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with trained and evaluated runs."""
    return shutil.copytree(run_to_the_end(), tmp_path_factory.mktemp("trained") / "project")


VERBS = {
    "predictions.json": ("predict", "--suite", "tiny", "--experiment", "tsd_pc"),
    "metrics.json": ("evaluate", "coco", "--annotations", "data/tiny/annotations/instances_val.json"),
    "tables": ("tables", "--suite", "tiny"),
}


@pytest.mark.parametrize("what", VERBS)
def test_a_full_disk_leaves_no_part_of_predictions_metrics_and_tables(trained, tmp_path, monkeypatch, what):
    monkeypatch.chdir(trained)
    folder = tmp_path / "disk"
    command = [*VERBS[what], "--output", folder / what]
    if what == "metrics.json":
        command += ["--predictions", next(trained.glob("results/tiny/runs/tsd_pc/*/seed0/eval/*/predictions.json"))]
    with small_disk(folder, 4 << 20):
        if what == "tables":
            (folder / what).mkdir()
            (folder / what / "ablation.md").write_text("the old table\n")
        filler = fill(folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != filler}
        done = tsd(*command)
        assert done.returncode == 1, done.stderr[-2000:]
        assert FULL in done.stderr
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != filler} == before
        filler.unlink()
        done = tsd(*command)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (folder / what).exists()


def edited(path, **run):
    content = torch.load(path, weights_only=True)
    content["meta"]["run"] |= run
    torch.save(content, path)


def test_a_checkpoint_of_another_run_is_neither_resumed_nor_judged(trained, tmp_path, monkeypatch):
    project = shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(project)
    (folder,) = project.glob("results/tiny/runs/tsd_pc/*/seed0")
    meta = checkpoint.load(folder / "checkpoint.pth")["meta"]
    assert meta["run"]["experiment"] == "tsd_pc"
    assert meta["run"]["digest"] == folder.parent.name
    command = ("--suite", "tiny", "--experiment", "tsd_pc")
    edited(folder / "checkpoint.pth", seed=1)
    for words in (
        command,
        (*command, "--checkpoint", folder / "checkpoint.pth", "--output", "few.json", "--limit", "2"),
    ):
        done = tsd("predict", *words)
        assert done.returncode == 2, done.stderr[-2000:]
        assert "checkpoint.pth: is of the run tiny/tsd_pc/" in done.stderr
    newest = next(checkpoint.steps(folder / "checkpoints"))[1]
    edited(newest, experiment="baseline")
    (folder / "checkpoint.pth").unlink()
    done = tsd("train", *command, "--no-mlflow")
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"{newest.name}: is of the run tiny/baseline/" in done.stderr
    assert not (folder / "checkpoint.pth").exists()


JUMPS = """
import time
_time, _start = time.time, time.monotonic()
def jumping():  # every half second forward by a day, or back by two
    turn = int((time.monotonic() - _start) * 2)
    return _time() + 86400 * (turn if turn % 2 else -2 * turn)
time.time = jumping
"""


def test_a_clock_that_jumps_changes_nothing(tiny, uninterrupted, tmp_path):  # noqa: F811
    (tmp_path / "jumps").mkdir()
    (tmp_path / "jumps/sitecustomize.py").write_text(JUMPS)
    train = [word for word in TRAIN if word != "--no-mlflow"]
    done = tsd(*train, env={"PYTHONPATH": f"{tmp_path / 'jumps'}:{tiny}"}, fresh=True)
    assert done.returncode == 0, done.stderr[-2000:]
    times = [json.loads(line)["time"] for line in (run_folder() / "log.jsonl").read_text().splitlines()]
    assert times != sorted(times)  # it did jump
    assert_same(result(run_folder()), uninterrupted)
    from tests.tracking.test_mirror import history

    report = sync_all(tiny, tracking_uri(tiny))
    assert report.failed == []
    # Steps order the curves, whatever the times are.
    run_id = sync_run(tiny / run_folder(), tracking_uri(tiny))
    assert sorted(step for step, _ in history(tracking_uri(tiny), run_id, "loss")) == [1, 2, 3, 4, 5, 6]


def test_data_that_changed_after_it_was_verified_is_named_and_not_trained_on(tiny):  # noqa: F811
    path = tiny / "data/tiny/annotations/instances_train.json"
    text = path.read_text()
    assert tsd("data", "verify", "--suite", "tiny").returncode == 0
    path.write_text(text.replace('"iscrowd":0', '"iscrowd":1', 1))
    for command in (("data", "verify", "--suite", "tiny"), TRAIN):
        done = tsd(*command)
        assert done.returncode == 2
        assert "instances_train.json: content differs from data/tiny/manifest.json: its SHA-256 is " in done.stderr
        assert "Traceback" not in done.stderr
    assert not (run_folder() / "checkpoints").exists()
    path.write_text(text)
    picture = tiny / "data/tiny/train/000000000001.jpg"
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    done = tsd("data", "verify", "--suite", "tiny")
    assert done.returncode == 2
    assert "data/tiny/train: a picture's content differs" in done.stderr


def test_a_process_with_an_error_ends_the_others_and_says_it(prepared, tmp_path, monkeypatch):  # noqa: F811
    """A picture that only one of two processes reads is broken."""
    project_with(prepared, tmp_path / "project", 2, monkeypatch)
    for picture in Path("data/tiny/train").iterdir():
        if int(picture.stem) % 5 == 0:
            picture.write_bytes(picture.read_bytes()[:100])
    process = start()
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 2
    last = error.strip().splitlines()[-1]
    assert last.startswith("data/tiny/train/")
    assert "is corrupt" in last
    assert "ChildFailedError" not in error
    (status,) = Path("results/pair/runs").glob("*/*/*/status.json")
    content = json.loads(status.read_text())
    assert content["status"] == "FAILED"
    assert "is corrupt" in content["error"]


def test_missing_weights_are_the_last_that_two_processes_say(prepared, tmp_path, monkeypatch):  # noqa: F811
    folder = project_with(prepared, tmp_path / "project", 2, monkeypatch)
    (folder / PUBLISHED).unlink()
    process = start()
    error = process.communicate(timeout=200)[1]
    assert process.returncode == 2
    assert error.strip().splitlines()[-1].startswith(f"backbone.pretrained: no file {PUBLISHED} here")
    assert "ChildFailedError" not in error


def test_two_snakemakes_at_once(project):
    """The second says that the folder is locked; the first is not disturbed."""
    edit(project / "params/suites/tiny.yaml", lambda suite: suite.update(experiments=["baseline"], tables=["ablation"]))
    command = [Path(sys.executable).parent / "snakemake", "--cores", "1", "--config", "suite=tiny"]
    path = f"{forking()}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as first:
        locks = project / ".snakemake/locks"
        while not (locks.exists() and any(locks.iterdir())):
            assert first.poll() is None
            time.sleep(0.05)
        second = snakemake(cwd=project, check=False)
        assert first.poll() is None
        _, error = first.communicate(timeout=400)
    assert second.returncode != 0
    assert "lock" in (second.stdout + second.stderr).lower()
    assert first.returncode == 0, error[-2000:]
    assert (project / "results/tiny/tables/ablation.md").exists()


KILLS = int(os.environ.get("TSD_KILLS", "20"))


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tiny, uninterrupted):  # noqa: F811
    """While it trains and evaluates; each killed training is gone on with and compared bit by bit."""
    rng = random.Random(os.environ.get("TSD_KILL_SEED", "2020"))
    process = start(sys.executable, "-m", "tsd.cli", *TRAIN)
    wait_for_step(1, process, run_folder())
    started = time.monotonic()
    assert process.wait(300) == 0
    whole = time.monotonic() - started
    outcomes = []
    for _ in range(KILLS):
        shutil.rmtree("results")
        process = start(sys.executable, "-m", "tsd.cli", *TRAIN)
        wait_for_step(1, process, run_folder())
        time.sleep(rng.uniform(0, whole))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        steps = [step for step, _ in checkpoint.steps(run_folder() / "checkpoints")]
        done = tsd(*TRAIN)
        assert done.returncode == 0, done.stderr[-2000:]
        assert_same(result(run_folder()), uninterrupted)
        outcomes.append(max(steps, default=0))
    print(f"{KILLS} kills, newest checkpoint at step {sorted(outcomes)}: all ended with the same bits")
    assert len(set(outcomes)) > 1
