"""MLflow mirrors the files of a run: completely, idempotently, and without ever stopping a run."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, free_port, tsd
from tsd.errors import InputError
from tsd.tracking.follow import mirror
from tsd.tracking.mirror import sync_run
from tsd.tracking.store import connect, init, tracking_uri


def make_run(root: Path, experiment="tsd_pc", seed=0, status="FINISHED", steps=20, error=None) -> Path:
    """A run's folder with all its files."""
    folder = root / "results/demo/runs" / experiment / "0123456789ab" / f"seed{seed}"
    evaluation = folder / "eval/ba9876543210"
    (evaluation / "pictures").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    described = {"suite": "demo", "experiment": experiment, "seed": seed, "digest": "0123456789ab", "recipe": "paper"}
    described |= {"data_digest": "d" * 12, "tables": ["table3/tsd_pc"], "params": {"schedule": {"lr": 0.04}, "a": [1]}}
    described |= {"test_digest": "e" * 12, "revision": 1, "data": {"format": "generated"}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(described))
    (folder / "environment.json").write_text(json.dumps({"git_commit": "c" * 40, "git_dirty": False, "hostname": "h"}))
    set_status(folder, status, error)
    write_log(folder, range(1, steps + 1))
    (folder / "config.py").write_text("a = 1\n")
    metrics = {"metrics": {"AP": 0.25, "AP50": 0.5, "APs": None}, "per_class": [{"name": "a (b)", "AP": 0.1}]}
    metrics |= {"scale_iou": {"small": {"0.50": 0.3}}}
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    (evaluation / "pictures/1.png").write_bytes(b"picture")
    return folder


def set_status(folder, status, error=None):
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": None}
    (folder / "status.json").write_text(json.dumps({"status": status, "error": error} | times))


def write_log(folder, steps):
    lines = [{"time": 1e9 + step, "step": step, "epoch": step // 10, "lr": 0.01, "loss": 1 / step} for step in steps]
    lines += [
        {"time": 2e9 + step, "step": step, "epoch": step // 10, "val/AP50": 0.4} for step in steps if step % 10 == 0
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """(root, URI) of an initialised sqlite store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_uri(tmp_path)
    init(tmp_path, uri, ["tsd-demo"])
    return tmp_path, uri


def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri):
    found = client(uri).get_experiment_by_name("tsd-demo")
    return client(uri).search_runs([found.experiment_id])


def history(uri, run_id, key):
    return [(metric.step, metric.value) for metric in client(uri).get_metric_history(run_id, key)]


def test_everything_of_a_run_is_there(store):
    root, uri = store
    run_id = sync_run(make_run(root), uri)
    (run,) = runs(uri)
    assert run.info.run_id == run_id
    assert run.info.run_name == "tsd_pc seed0"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"schedule.lr": "0.04", "a": "[1]"}
    expected = {"suite": "demo", "experiment": "tsd_pc", "seed": "0", "table_rows": "table3/tsd_pc"}
    expected |= {"git_commit": "c" * 40, "data_digest": "d" * 12, "config_hash": "0123456789ab"}
    assert expected.items() <= run.data.tags.items()
    metrics = run.data.metrics
    assert (metrics["AP"], metrics["AP50"], metrics["val/AP50"]) == (0.25, 0.5, 0.4)
    assert metrics["per_class/a _b_/AP"] == 0.1
    assert metrics["scale_iou/small/0.50"] == 0.3
    assert "APs" not in metrics
    assert len(history(uri, run_id, "loss")) == 20
    assert history(uri, run_id, "val/AP50") == [(10, 0.4), (20, 0.4)]
    artifacts = {item.path for item in client(uri).list_artifacts(run_id)}
    assert {"config.py", "experiment.yaml", "log.jsonl", "metrics.json", "pictures"} <= artifacts


def test_doing_it_twice_changes_nothing(store):
    root, uri = store
    folder = make_run(root)
    first = sync_run(folder, uri)
    before = {key: history(uri, first, key) for key in ("loss", "lr", "AP", "val/AP50")}
    assert sync_run(folder, uri) == first
    assert {key: history(uri, first, key) for key in before} == before
    assert len(runs(uri)) == 1


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(store):
    root, uri = store
    folder = make_run(root, status="RUNNING", steps=12)
    (folder / "checkpoints/step_00000010.pth").touch()
    first = sync_run(folder, uri)
    assert [step for step, _ in history(uri, first, "loss")] == list(range(1, 11)), "later steps will be done again"
    set_status(folder, "FAILED", "DivergedError: loss became nan")
    sync_run(folder, uri)
    (run,) = runs(uri)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "DivergedError: loss became nan"
    write_log(folder, range(1, 21))
    set_status(folder, "FINISHED")
    assert sync_run(folder, uri) == first
    assert [step for step, _ in history(uri, first, "loss")] == list(range(1, 21))
    assert runs(uri)[0].info.status == "FINISHED"


def test_a_run_hangs_under_its_table_and_is_found_by_every_one(store):
    root, uri = store
    init(root, uri, ["tsd-demo"], {"table3": "Ablation studies on PC"})
    init(root, uri, ["tsd-demo"], {"table3": "Ablation studies on PC"})
    folder = make_run(root)
    described = yaml.safe_load((folder / "experiment.yaml").read_text())
    described["tables"] = ["ablation/tsd_pc", "table3/tsd_pc", "table9/small_tsd", "table9/large_tsd"]
    (folder / "experiment.yaml").write_text(yaml.safe_dump(described))
    run_id = sync_run(folder, uri)
    number = client(uri).get_experiment_by_name("tsd-demo").experiment_id
    (parent,) = client(uri).search_runs([number], "tags.`tsd.table` = 'table3'")
    assert parent.info.run_name == "table3: Ablation studies on PC"
    tags = client(uri).get_run(run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id  # the first of its tables that the suite makes
    assert (tags["ablation"], tags["table3"], tags["table9"]) == ("tsd_pc", "tsd_pc", "small_tsd")
    (found,) = client(uri).search_runs([number], "tags.table3 LIKE '%'")
    assert found.info.run_id == run_id


def test_a_run_deleted_in_mlflow_is_made_again(store):
    root, uri = store
    folder = make_run(root)
    first = sync_run(folder, uri)
    client(uri).delete_run(first)
    assert sync_run(folder, uri) != first


def test_several_processes_can_write_at_once(store):
    root, uri = store
    folders = [make_run(root, seed=seed) for seed in range(3)]
    code = (
        "import sys, pathlib as p; from tsd.tracking.mirror import sync_run; sync_run(p.Path(sys.argv[1]), sys.argv[2])"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(folder), uri]) for folder in folders]
    assert [process.wait(timeout=200) for process in started] == [0, 0, 0]
    assert len(runs(uri)) == 3


def test_a_server_that_is_down_costs_nothing_and_sync_catches_up(tmp_path, monkeypatch, capsys):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = make_run(tmp_path)
    started = time.monotonic()
    assert mirror(folder, uri) is False
    assert time.monotonic() - started < 60
    assert (folder / "mlflow.pending").exists()
    assert "tsd mlflow sync" in capsys.readouterr().err
    (tmp_path / "params").mkdir()
    assert tsd("mlflow", "sync", cwd=tmp_path).returncode == 1
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/art"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_for(f"{uri}/health")
            for _ in range(2):  # the second time finds nothing to do
                done = tsd("mlflow", "sync", cwd=tmp_path)
                assert done.returncode == 0, done.stderr
                assert "1 runs in step with MLflow" in done.stdout
            (run,) = runs(uri)
            assert len(history(uri, run.info.run_id, "loss")) == 20
            assert not (folder / "mlflow.pending").exists()
        finally:
            server.terminate()


def wait_for(url):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")


def test_processes_that_make_a_fresh_file_at_once_leave_a_whole_one(tmp_path):
    """And one that is killed while it does leaves none."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-c", f"from tsd.tracking.store import init; init('{tmp_path}', '{uri}', ['tsd-demo'])"]
    killed = subprocess.Popen(command, cwd=ROOT)
    while not any(path.name.endswith(".tmp.db") for path in tmp_path.iterdir()):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "mlflow.db").exists()
    makers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(maker.communicate(timeout=300)[1], maker.returncode) for maker in makers]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
    assert [found.name for found in connect(uri).search_experiments()].count("tsd-demo") == 1


def test_the_store_is_beside_the_repository_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other/x.db")
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/other/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://login:5000")
    assert tracking_uri(tmp_path) == "http://login:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://tsd@db/mlflow")
    assert tracking_uri(tmp_path) == "postgresql+psycopg2://tsd@db/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://login:5000")
    with pytest.raises(InputError, match=r"expected one of sqlite, http, .* before ://, got 'htp'"):
        tracking_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(InputError, match="no longer takes file stores"):
        tracking_uri(tmp_path)


def test_a_copied_folder_does_not_write_into_the_first(tmp_path):
    """MLflow's file holds the absolute places of its runs' files."""
    place = tmp_path / "first"
    place.mkdir()
    sync_run(make_run(place), tracking_uri(place))
    copy = shutil.copytree(place, tmp_path / "copy")
    before = {path: path.read_bytes() for path in (place / "mlruns").rglob("*") if path.is_file()}
    (folder,) = copy.glob("results/demo/runs/*/*/seed0")
    (next(folder.glob("eval/*")) / "metrics.json").write_text(json.dumps({"metrics": {"AP": 1.0}}))
    with pytest.raises(InputError, match=r"mlflow\.db: its runs' files are in .*; move it away, and `tsd mlflow sync`"):
        sync_run(folder, tracking_uri(copy))
    assert {path: path.read_bytes() for path in before} == before
