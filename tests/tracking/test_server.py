"""A team's MLflow: many trainings log at once to a server on PostgreSQL, which is killed and comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, tsd
from tests.tracking.server import Server, postgres, wait_until
from tests.tracking.test_mirror import client, history, make_run, runs, set_status, write_log
from tsd.tracking.follow import mirror
from tsd.tracking.mirror import sync_run
from tsd.tracking.store import init
from tsd.tracking.sync import sync_all

PROCESSES, ROUNDS, STEPS = 8, 6, 10
STOP_AFTER = 2
"""Rounds before the server is killed; the others wait until it has been away for one."""

WRITER = f"""
import sys, time
from pathlib import Path
from tests.tracking.test_mirror import set_status, write_log
from tsd.tracking.follow import update
from tsd.tracking.process import Process

process = Process()
folder, uri, flags = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
for turn in range(1, {ROUNDS} + 1):
    if turn == {STOP_AFTER} + 1:
        (flags / f"{{folder.parents[1].name}}.waits").touch()
        while not (flags / "killed").exists():
            time.sleep(0.1)
    if turn == {STOP_AFTER} + 2:
        while not (flags / "back").exists():
            time.sleep(0.1)
    write_log(folder, range(1, turn * {STEPS} + 1))
    (folder / f"checkpoints/step_{{turn * {STEPS}:08d}}.pth").touch()
    told = update(process, folder, uri)
    if turn == {STOP_AFTER} + 1:
        assert not told, "the server was killed"
        (flags / f"{{folder.parents[1].name}}.failed").touch()
set_status(folder, "FINISHED")
process.close()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with postgres() as store:
        found = Server(store, tmp_path_factory.mktemp("mlflow"))
        found.start()
        try:
            yield found
        finally:
            found.kill()


def test_eight_trainings_and_a_server_that_dies_lose_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    init(tmp_path, server.uri, ["tsd-demo"])
    names = [f"experiment_{letter}" for letter in "abcdefgh"[:PROCESSES]]
    folders = [make_run(tmp_path, name, status="RUNNING", steps=1) for name in names]
    flags = tmp_path / "flags"
    flags.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, folder, server.uri, flags],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    try:
        wait_until(lambda: len(list(flags.glob("*.waits"))) == PROCESSES, lambda: "writers did not start", 300)
        server.kill()
        (flags / "killed").touch()
        wait_until(lambda: len(list(flags.glob("*.failed"))) == PROCESSES, lambda: "writers hang", 300)
        assert all((folder / "mlflow.pending").exists() for folder in folders)
        server.start()
        (flags / "back").touch()
        outputs = [writer.communicate(timeout=300)[1] for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
    assert [writer.returncode for writer in writers] == [0] * PROCESSES, outputs
    assert all("was not updated" in output for output in outputs)
    done = tsd("mlflow", "sync", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{PROCESSES} runs in step with MLflow, 0 failed" in done.stdout
    found = runs(server.uri)
    assert sorted(run.data.tags["experiment"] for run in found) == names
    for run in found:
        assert run.info.status == "FINISHED"
        losses = history(server.uri, run.info.run_id, "loss")
        # every step once
        assert sorted(losses) == [(step, pytest.approx(1 / step)) for step in range(1, ROUNDS * STEPS + 1)]
        assert run.data.metrics["AP50"] == 0.5
    assert not list(tmp_path.rglob("mlflow.pending"))


@pytest.mark.parametrize("moment", ["start", "middle", "end"])
def test_a_server_that_is_away_at_any_moment_costs_nothing(server, tmp_path, monkeypatch, capsys, moment):
    """Down when the run starts, between two checkpoints, or when it ends: after `tsd mlflow sync` all is there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = make_run(tmp_path, f"down_at_{moment}", status="RUNNING", steps=1)
    told = []
    for name, steps in (("start", 10), ("middle", 20), ("end", 30)):
        if name == moment:
            server.kill()
        write_log(folder, range(1, steps + 1))
        (folder / f"checkpoints/step_{steps:08d}.pth").touch()
        if name == "end":
            set_status(folder, "FINISHED")
        told.append(mirror(folder, server.uri))
        if name == moment:
            assert "`tsd mlflow sync` will catch up" in capsys.readouterr().err
            server.start()
    assert told == [name != moment for name in ("start", "middle", "end")]
    assert sync_all(tmp_path, server.uri).failed == []
    (run,) = [run for run in runs(server.uri) if run.data.tags["experiment"] == f"down_at_{moment}"]
    assert run.info.status == "FINISHED"
    assert len(history(server.uri, run.info.run_id, "loss")) == 30


def test_the_server_holds_the_artifacts(server, tmp_path):
    folder = make_run(tmp_path, "with_artifacts")
    run_id = sync_run(folder, server.uri)
    names = {entry.path for entry in client(server.uri).list_artifacts(run_id)}
    assert {"config.py", "experiment.yaml", "log.jsonl", "metrics.json", "pictures"} <= names
    path = Path(client(server.uri).download_artifacts(run_id, "metrics.json", str(tmp_path)))
    assert json.loads(path.read_text())["metrics"]["AP50"] == 0.5
