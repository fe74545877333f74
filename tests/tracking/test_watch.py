"""MLflow from the login node: `tsd mlflow sync`, once or as a watch, and several at the same time."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, tsd
from tests.tracking.server import Server, wait_until
from tests.tracking.test_mirror import client, history, make_run, runs, set_status, write_log
from tsd.cli import main
from tsd.tracking.mirror import sync_run
from tsd.tracking.store import KEY, PARENT, init, tracking_uri
from tsd.tracking.sync import Watcher, has_ended, sync_all

TITLES = {"table3": "Ablation studies on PC"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def looking():
    """Makes a watcher whose lines are kept, without their time; its process ends with the test."""
    made = []

    def make(root, uri):
        lines = []
        made.append(Watcher(root, uri, None, lambda suite: TITLES, lambda line: lines.append(line.partition(" ")[2])))
        return made[-1], lines

    yield make
    for watcher in made:
        watcher.session.process.close()


def advance(folder, steps, status="RUNNING"):
    """A training writes its log and a checkpoint."""
    write_log(folder, range(1, steps + 1))
    (folder / f"checkpoints/step_{steps:08d}.pth").write_bytes(b"weights")
    set_status(folder, status)


def test_a_watch_tells_each_change_once_and_follows_a_run_that_is_resumed(place, looking):
    uri = tracking_uri(place)
    watcher, lines = looking(place, uri)
    assert watcher.look() is True
    assert lines == [], "nothing to do, and the store is not even made"
    folder = make_run(place, status="RUNNING")
    (folder / "eval/ba9876543210/metrics.json").unlink()
    for steps, status in ((10, "RUNNING"), (20, "KILLED"), (20, "RUNNING"), (30, "FINISHED")):
        advance(folder, steps, status)
        assert watcher.look() is True
        assert watcher.look() is True  # nothing has changed
        (run,) = [run for run in runs(uri) if KEY in run.data.tags]
        assert run.info.status == status
    (folder / "eval/ba9876543210/metrics.json").write_text(json.dumps({"metrics": {"AP": 0.25}}))
    assert watcher.look() is True
    said = ["RUNNING, step 10", "KILLED, step 20", "RUNNING, step 20", "trained, not evaluated", "FINISHED, AP 25.0"]
    assert lines == [f"demo/tsd_pc/seed0: {state}" for state in said]
    assert [step for step, _ in history(uri, run.info.run_id, "loss")] == list(range(1, 31))


def test_a_watch_survives_a_server_that_comes_and_goes(place, looking):
    server = Server(f"sqlite:///{place}/server.db", place)
    folder = make_run(place)
    watcher, lines = looking(place, server.uri)
    try:
        assert watcher.look() is False
        assert watcher.look() is False
        assert len(lines) == 1
        assert lines[0].startswith(f"MLflow at {server.uri} does not answer (")
        server.start()
        assert watcher.look() is True
        assert lines[1:] == [f"MLflow at {server.uri} answers again", "demo/tsd_pc/seed0: FINISHED, AP 25.0"]
        server.kill()
        advance(folder, 30)
        assert watcher.look() is False
        server.start()
        assert watcher.look() is True
        assert lines[-2:] == [
            f"MLflow at {server.uri} answers again",
            "demo/tsd_pc/seed0: RUNNING, step 30, AP 25.0",
        ]
        (run,) = [run for run in runs(server.uri) if KEY in run.data.tags]
        assert len(history(server.uri, run.info.run_id, "loss")) == 30
    finally:
        server.kill()


def heed_ctrl_c():
    """A shell has what it starts in the background ignore it, and all that this starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_two_watches_at_once_make_no_duplicates_and_end_when_told(place):
    uri = tracking_uri(place)
    names = ("baseline", "tsd_joint", "tsd_pc")
    folders = [make_run(place, name, status="RUNNING", steps=1) for name in names]
    with (place / "said").open("w") as said:
        watches = [
            subprocess.Popen(
                [sys.executable, "-m", "tsd.cli", "mlflow", "sync", "--watch", "1"],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=said,
                stderr=said,
                preexec_fn=heed_ctrl_c,
            )
            for _ in range(2)
        ]
        try:
            for steps in (10, 20, 30):
                for folder in folders:
                    advance(folder, steps, "FINISHED" if steps == 30 else "RUNNING")
                wanted = 2 * len(names) * steps // 10
                wait_until(
                    lambda n=wanted: (place / "said").read_text().count("/seed0: ") >= n, (place / "said").read_text
                )
            watches[0].send_signal(signal.SIGINT)
            watches[1].send_signal(signal.SIGTERM)
            assert [watch.wait(60) for watch in watches] == [0, 0]
        finally:
            for watch in watches:
                watch.kill()
                watch.wait()
    assert (place / "said").read_text().count("stopped; MLflow is in step with the files") == 2
    found = [run for run in runs(uri) if KEY in run.data.tags]
    assert sorted(run.data.tags["experiment"] for run in found) == sorted(names)
    for run in found:
        assert run.info.status == "FINISHED"
        for key in ("loss", "lr", "AP", "per_class/a _b_/AP"):
            steps = [step for step, _ in history(uri, run.info.run_id, key)]
            assert len(steps) == len(set(steps)) == (30 if key in ("loss", "lr") else 1), key


def test_a_run_that_is_there_twice_is_there_once_after_the_next_sync(place):
    """As after two processes that each made it."""
    uri = tracking_uri(place)
    init(place, uri, ["tsd-demo"])
    folder = make_run(place)
    first = sync_run(folder, uri)
    number = client(uri).get_experiment_by_name("tsd-demo").experiment_id
    key = "demo/tsd_pc/0123456789ab/seed0"
    client(uri).create_run(number, start_time=1, run_name="tsd_pc seed0", tags={KEY: key})
    older = sync_run(folder, uri)
    assert older != first
    assert [run.info.run_id for run in runs(uri)] == [older]
    assert len(history(uri, older, "loss")) == 20


RACER = """
import sys, time
from pathlib import Path
from tsd.tracking import mirror, store

store.connect(sys.argv[2])
Path(sys.argv[3]).touch()
while len(list(Path(sys.argv[3]).parent.glob("*.ready"))) < 3:
    time.sleep(0.01)
store.init(".", sys.argv[2], ["tsd-demo"], {"table3": "PC"})
mirror.sync_run(sys.argv[1], sys.argv[2])
"""


def test_processes_that_make_the_same_run_at_the_same_moment_agree_on_one(place):
    uri = tracking_uri(place)
    init(place, uri, ["tsd-demo"])
    folder = make_run(place)
    commands = [[sys.executable, "-c", RACER, folder, uri, place / f"{turn}.ready"] for turn in range(3)]
    racers = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}) for command in commands]
    for racer in racers:
        racer.wait(200)  # one whose run another process deleted fails, as a sync then says
    init(place, uri, ["tsd-demo"], {"table3": "PC"})
    run_id = sync_run(folder, uri)
    found = runs(uri)
    assert [run.info.run_id for run in found if KEY in run.data.tags] == [run_id]
    (parent,) = [run for run in found if PARENT in run.data.tags]
    (run,) = [run for run in found if KEY in run.data.tags]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert sorted(step for step, _ in history(uri, run_id, "loss")) == list(range(1, 21))
    assert len(history(uri, run_id, "AP")) == 1


def test_pending_syncs_only_what_lacks(place):
    uri = tracking_uri(place)
    behind, other = make_run(place, "tsd_pc"), make_run(place, "baseline")
    (behind / "mlflow.pending").write_text("the server was down\n")
    report = sync_all(Path(), uri, pending=True)
    assert report.synced == [behind.relative_to(place)]
    assert not (behind / "mlflow.pending").exists()
    assert [run.data.tags["experiment"] for run in runs(uri)] == ["tsd_pc"]
    assert sync_all(Path(), uri, pending=True).synced == []
    assert len(sync_all(Path(), uri).synced) == 2
    assert other.exists()


def test_a_store_that_is_away_is_asked_once_and_all_runs_are_told(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    folders = [make_run(place, name) for name in ("baseline", "tsd_joint", "tsd_pc")]
    done = tsd("mlflow", "sync")
    assert done.returncode == 1
    assert "0 runs in step with MLflow, 3 failed" in done.stdout
    assert done.stderr.count("MLflow at http://127.0.0.1:1 does not answer") == 1
    assert "secret" not in done.stdout + done.stderr
    assert all((folder / "mlflow.pending").exists() for folder in folders)
    done = tsd("mlflow", "sync", "--pending", "--output", "mlflow.json")
    assert done.returncode == 0, "a rule must not fail because of it"
    said = json.loads((place / "mlflow.json").read_text())
    assert said["uri"] == "http://127.0.0.1:1"
    assert len(said["failed"]) == 3
    assert "secret" not in (place / "mlflow.json").read_text()


DAMAGED = {
    "status.json": ('{"status": "GONE"}', "status.json: status: expected one of RUNNING, FINISHED, KILLED, FAILED"),
    "experiment.yaml": ("suite: [", "experiment.yaml: line 1 column 9: "),
    "environment.json": ("[]", "environment.json: expected object, got []"),
    "log.jsonl": (
        '{"step": 1, "time": 1}\nno\n{}\n',
        "log.jsonl, line 2: expected a step and a time, and figures that are numbers; remove the line",
    ),
    "eval/ba9876543210/metrics.json": ('{"metrics": 1}', "metrics.json: metrics: expected object, got 1"),
}


def test_a_damaged_file_of_one_run_is_named_and_keeps_no_other_from_mlflow(place):
    uri = tracking_uri(place)
    for number, (name, (content, _)) in enumerate(DAMAGED.items()):
        (make_run(place, f"damaged{number}") / name).write_text(content)
    good = make_run(place, "tsd_pc")
    done = tsd("mlflow", "sync")
    assert done.returncode == 1
    assert "1 runs in step with MLflow, 5 failed" in done.stdout
    for number, (_, said) in enumerate(DAMAGED.values()):
        folder = f"results/demo/runs/damaged{number}/0123456789ab/seed0"
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{folder}: ")]
        assert said in line
        assert str(place) not in line
        assert said in (place / folder / "mlflow.pending").read_text()
    assert "FINISHED" in [run.info.status for run in runs(uri) if run.data.tags["experiment"] == "tsd_pc"]
    assert not (good / "mlflow.pending").exists()


def test_a_watch_goes_on_past_damage_and_names_runs_by_what_they_differ_in(place, looking):
    uri = tracking_uri(place)
    folder = make_run(place)
    other = shutil.copytree(folder, folder.parents[1] / "ffffffffffff/seed0")
    described = yaml.safe_load((other / "experiment.yaml").read_text())
    (other / "experiment.yaml").write_text(yaml.safe_dump(described | {"digest": "ffffffffffff"}))
    status = (other / "status.json").read_text()
    (other / "status.json").write_text("{")
    watcher, lines = looking(place, uri)
    assert watcher.look() is False
    assert lines[0] == "demo/tsd_pc/0123456789ab/seed0: FINISHED, AP 25.0"
    assert "ffffffffffff/seed0: not taken by MLflow (status.json: not valid JSON: line 1" in lines[1]
    assert not has_ended(other, other / "eval/ba9876543210")
    (other / "status.json").write_text(status)
    assert watcher.look() is True
    assert lines[2:] == ["demo/tsd_pc/ffffffffffff/seed0: FINISHED, AP 25.0"]


def test_tables_are_uploaded_when_they_change(place, looking):
    uri = tracking_uri(place)
    make_run(place)
    tables = place / "results/demo/tables"
    tables.mkdir()
    for kind in ("md", "csv", "tex"):
        (tables / f"table3.{kind}").write_text("a table\n")
    watcher, lines = looking(place, uri)
    assert watcher.look() is True
    assert lines[-1] == "demo: tables"
    (parent,) = [run for run in runs(uri) if PARENT in run.data.tags]
    assert parent.info.status == "FINISHED"
    names = {item.path for item in client(uri).list_artifacts(parent.info.run_id)}
    assert names == {"table3.md", "table3.csv", "table3.tex"}
    before = parent.info.end_time
    assert sync_all(place, uri, titles=lambda suite: TITLES).failed == []
    (parent,) = [run for run in runs(uri) if PARENT in run.data.tags]
    assert parent.info.end_time == before


def test_times_and_errors_are_those_of_the_training(place):
    uri = tracking_uri(place)
    folder = make_run(place, status="RUNNING")
    status = {"status": "FAILED", "error": "DivergedError: loss became nan", "started": "2026-01-02T03:04:05+00:00"}
    (folder / "status.json").write_text(json.dumps(status | {"ended": "2026-01-02T04:04:05+00:00"}))
    sync_run(folder, uri)
    (run,) = runs(uri)
    assert (run.info.start_time, run.info.end_time) == (1767323045000, 1767326645000)
    assert run.data.tags["error"] == "DivergedError: loss became nan"
    status |= {"status": "FINISHED", "error": None, "ended": "2026-01-02T05:04:05+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    sync_run(folder, uri)
    (run,) = runs(uri)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1767330245000)
    assert "error" not in run.data.tags


def test_what_is_waited_for_has_failed_or_is_evaluated(place):
    folder = make_run(place)
    evaluation = folder / "eval/ba9876543210"
    assert has_ended(folder, evaluation)
    for status, ended in (("FAILED", True), ("KILLED", False), ("RUNNING", False)):
        set_status(folder, status)
        assert has_ended(folder, evaluation) is ended
    set_status(folder, "FINISHED")
    (evaluation / "metrics.json").unlink()
    assert not has_ended(folder, evaluation)
    assert not has_ended(place / "nothing", evaluation)


@pytest.mark.parametrize("words", [["init", "--suite", "tiny"], ["sync"]])
def test_an_output_that_cannot_be_written_is_told(project, monkeypatch, capsys, words):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tsd.tracking.process.Process.call", lambda *_, **__: [])
    with monkeypatch.context() as patch:
        patch.setattr("tsd.files.os.fsync", full)
        assert main(["mlflow", *words, "--output", "out.json"]) == 1
    assert capsys.readouterr().err == "out.json: can't be written: No space left on device\n"
    assert not [path for path in project.iterdir() if "out" in path.name]
    (project / "file").touch()
    assert main(["mlflow", *words, "--output", "file/out.json"]) == 2
    assert "file/out.json: can't be written: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--until-done",), "expected --watch and --suite NAME"),
        (("--watch", "--until-done"), "expected --watch and --suite NAME"),
        (("--watch", "5", "--pending"), "expected neither --pending nor --output"),
        (("--watch", "soon"), "expected an integer from 1"),
        (("--suite", "nope"), "nope.yaml: no such suite"),
        (("--suite", "tinyy"), "did you mean 'tiny'?"),
        (("--suite", "."), "suite '.': expected a name"),
        (("--suite", ""), "suite '': expected a name"),
    ],
)
def test_options_that_do_not_go_together_are_told(project, words, message):
    done = tsd("mlflow", "sync", *words)
    assert done.returncode == 2
    assert message in done.stderr
