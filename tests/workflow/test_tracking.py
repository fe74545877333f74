"""The workflow ends with MLflow in step, whatever kept the trainings and evaluations from telling it themselves."""

import json
import os
import shutil
import subprocess

import pytest

from tests.conftest import forking, free_port, tsd
from tests.tracking.test_mirror import history
from tests.workflow.test_pipeline import BIN, planned, run_to_the_end
from tsd.tracking.store import find_run, tracking_uri


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A copy of a project in which the suite has been run to the end."""
    folder = tmp_path / "project"
    shutil.copytree(run_to_the_end(), folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def snakemake(*options, **environment):
    """Run it to the end; returns the rules of the jobs that it ran, but `all`."""
    env = os.environ | {"PATH": f"{forking()}:{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | environment
    command = ["snakemake", "--cores", "2", "--config", "suite=tiny", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = (done.stdout + done.stderr).splitlines()
    return [line.split()[1].rstrip(":") for line in lines if line.startswith(("rule ", "localrule "))][:-1]


def test_after_trainings_that_told_mlflow_nothing_is_left_to_do(monkeypatch):
    finished = run_to_the_end()  # the folder itself: MLflow's file in a copy is refused
    monkeypatch.chdir(finished)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = json.loads((finished / "results/tiny/mlflow.json").read_text())
    assert (said["synced"], said["failed"]) == ([], [])
    assert not list(finished.rglob("mlflow.pending"))
    assert planned(finished) == {}
    done = tsd("mlflow", "sync", "--suite", "tiny", "--watch", "1", "--until-done")
    assert done.returncode == 0, done.stderr
    assert "all runs have ended, and MLflow is in step with them" in done.stdout


def test_an_evaluation_in_a_job_leaves_mlflow_to_the_next_snakemake_and_nothing_else_is_run(finished):
    (folder,) = (finished / "results/tiny/runs/tsd_pc").glob("*/seed0")
    (evaluation,) = folder.glob("eval/*")
    shutil.rmtree(finished / "mlruns")
    (finished / "mlflow.db").unlink()
    done = tsd(
        *("evaluate", "coco", "--annotations", "data/tiny/annotations/instances_val.json"),
        *("--predictions", evaluation / "predictions.json", "--output", evaluation / "again.json"),
        *("--run-folder", folder),
        env={"SLURM_JOB_ID": "7"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is not updated from this Slurm job") == 1
    assert not (finished / "mlflow.db").exists()
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    for _ in range(2):  # each Snakemake tries again, and ends well
        assert snakemake(**away) == ["sync_tracking"]
        assert (folder / "mlflow.pending").exists()
    assert snakemake() == ["sync_tracking"]
    assert not (folder / "mlflow.pending").exists()
    (run,) = json.loads((finished / "results/tiny/mlflow.json").read_text())["synced"]
    assert run == str(folder.relative_to(finished))
    uri = tracking_uri(finished)
    run_id = find_run(uri, "tiny", "/".join(["tiny", *folder.parts[-3:]]))
    assert len(history(uri, run_id, "AP")) == 1
    assert "train_detector" not in planned(finished)
