"""The pipeline itself, on the tiny suite: real trainings of a few steps, in copies of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import copy_project, forking, once
from tests.engine.browser import visit

BIN = Path(sys.executable).parent


def run(*command, check=True, cwd=None, **environment):
    """Run a command with the environment's programs first on the path, and a ``tsd`` that is forked."""
    env = os.environ | {"PATH": f"{forking()}:{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | environment
    env.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, cwd=cwd, timeout=900)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def snakemake(*targets, options=(), cwd=None, check=True, suite="tiny"):
    command = ("snakemake", "--cores", "2", "--config", f"suite={suite}", *options, "--", *targets)
    return run(*command, cwd=cwd, check=check)


def planned(cwd, *targets):
    """Jobs of a dry run: rule → count."""
    text = snakemake(*targets, options=("-n", "--quiet", "rules"), cwd=cwd).stdout
    table = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1].isdigit():
            table[parts[0]] = int(parts[1])
    return table


def edit(path: Path, change) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def run_to_the_end() -> Path:
    """A project in which the tiny suite has been run to the end; others read it too."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            copy_project(folder / "project", patch)
            snakemake()

    return once("finished", make) / "project"


@pytest.fixture(scope="module")
def finished():
    return run_to_the_end()


def test_the_run_leaves_metrics_tables_figures_and_the_list_of_runs(finished):
    results = finished / "results/tiny"
    metrics = [json.loads(path.read_text()) for path in results.glob("runs/*/*/seed0/eval/*/metrics.json")]
    assert {entry["run"]["experiment"] for entry in metrics} == {"baseline", "tsd_pc"}
    for entry in metrics:
        assert len(entry["metrics"]) == 12
        assert len(entry["per_class"]) == 4
        assert set(entry["scale_iou"]) == {"all", "small", "medium", "large"}
        assert [line["epoch"] for line in entry["run"]["history"]] == [1, 2]
    table = pd.read_csv(results / "tables/table3.csv")
    assert table[table["row"] == "tsd_pc"]["n"].tolist() == [1, 1, 1]
    assert table[table["row"] == "tsd_joint"]["n"].tolist() == [0, 0, 0]
    assert "not run" in (results / "tables/table2.md").read_text()
    assert {path.name for path in (results / "figures/pictures").iterdir()} >= {
        "figure1.png",
        "figure5.png",
        "figure6.png",
    }
    verdicts = pd.read_csv(results / "claims.csv").set_index("claim")["verdict"]
    assert verdicts["tsd_pc_over_sibling"] in {"supported", "contradicted", "not resolved"}
    assert verdicts["pc_helps"] == "not run"
    assert len(pd.read_csv(results / "report/runs.csv")) == 2
    assert len(pd.read_csv(results / "training.csv")) == 4


def test_the_predictions_score_the_same_in_pycocotools(finished):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for path in (finished / "results/tiny").glob("runs/*/*/seed0/eval/*/predictions.json"):
        truth = COCO(str(finished / "data/tiny/annotations/instances_val.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures = json.loads(path.with_name("metrics.json").read_text())["metrics"]
        order = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
        for name, value in zip(order, evaluation.stats, strict=True):
            expected = None if value < 0 else float(value)
            assert figures[name] == (None if expected is None else pytest.approx(expected, abs=1e-6)), name


def test_both_runs_are_in_mlflow(finished):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished}/mlflow.db")
    experiment = client.get_experiment_by_name("tsd-tiny")
    runs = client.search_runs([experiment.experiment_id], "tags.experiment LIKE '%'")
    assert {run.info.run_name for run in runs} == {"baseline seed0", "tsd_pc seed0"}
    for entry in runs:
        assert entry.info.status == "FINISHED"
        assert entry.data.metrics["AP50"] >= 0
        assert entry.data.params["schedule.epochs"] == "2"
        assert client.list_artifacts(entry.info.run_id, "pictures")
    # A search for each table, and a parent run that holds it.
    rows = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], "tags.table3 LIKE '%'")}
    assert set(rows) == {"tsd_pc seed0"}
    parent = client.get_run(rows["tsd_pc seed0"].data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "ablation: Ablation of TSD"
    run("tsd", "mlflow", "sync", cwd=finished)
    parents = client.search_runs([experiment.experiment_id], "tags.`tsd.table` LIKE '%'")
    assert {entry.data.tags["tsd.table"] for entry in parents} == {"ablation", "changes", "table2", "table3"}
    assert len(parents) == 4  # once each
    for entry in parents:
        names = {item.path for item in client.list_artifacts(entry.info.run_id)}
        assert {f"{entry.data.tags['tsd.table']}.{kind}" for kind in ("md", "csv", "tex")} <= names


def test_a_second_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in snakemake(options=["-n"], cwd=finished).stdout


def test_one_experiments_edit_trains_that_experiment_only(finished, tmp_path):
    import shutil

    folder = tmp_path / "edited"
    shutil.copytree(finished, folder)
    edit(folder / "params/experiments.yaml", lambda e: e["experiments"]["tsd_pc"]["head"].update(margin_cls=0.5))
    plan = planned(folder)
    assert plan["train_detector"] == 1
    assert "generate_data" not in plan
    stale = run("tsd", "prune", "--suite", "tiny", cwd=folder).stdout.split()
    assert [Path(path).parts[3] for path in stale if "/runs/" in path] == ["tsd_pc"]


def test_new_times_alone_train_nothing(finished, tmp_path):
    import shutil

    folder = tmp_path / "touched"
    shutil.copytree(finished, folder)
    for path in [folder / "data.dvc", *(folder / "data/tiny").rglob("*.json"), *(folder / "params").rglob("*.yaml")]:
        path.touch()
    assert "train_detector" not in planned(folder)


def test_published_metrics_outlive_their_runs(finished, tmp_path):
    """The folders of runs removed to free the disk: nothing is trained or lost, now and the next time."""
    folder = tmp_path / "freed"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "results/tiny/runs/tsd_pc")
    for checkpoint in (folder / "results/tiny/runs").rglob("checkpoint.pth"):
        checkpoint.unlink()
    published = files_of(folder / "results/tiny/metrics")
    assert len(published) == 4
    tables = files_of(folder / "results/tiny/tables")
    for targets in ((), ("tables",), ("table2",)):
        plan = planned(folder, *targets)
        assert not {"train_detector", "predict_detections", "evaluate_detections"} & set(plan), plan
        snakemake(*targets, cwd=folder)
        assert files_of(folder / "results/tiny/metrics") == published
        assert files_of(folder / "results/tiny/tables") == tables


@pytest.mark.parametrize("also", ["thesis.txt", None])
def test_a_folder_of_ones_own_is_not_replaced_by_scenes(project, also):
    mine = ["annotations/instances_train.json", "annotations/instances_val.json", "train/a.png", "val/b.png"]
    for name in [*mine, *([also] if also else [])]:
        path = project / "data/tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    before = files_of(project / "data")
    done = snakemake("data", cwd=project, check=False)
    assert done.returncode != 0
    said = (project / "logs/tiny/generate_data.log").read_text()
    assert ("holds thesis.txt" if also else "its files are not the generator's") in said
    assert files_of(project / "data") == before


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_browser_shows_the_report(finished):
    """Everything in one file: read in a folder that holds nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "report.html")
        shutil.copy(finished / "results/tiny/report.html", alone)
        shot = finished / "report.png"
        words = ["Claims of the paper", "Ablation studies on PC", "figure6", "training_curves", "Environment"]
        text = visit(alone.as_uri(), words, shot)
    assert shot.stat().st_size > 20_000
    for metrics in (finished / "results/tiny/metrics").glob("*.json"):
        run = json.loads(metrics.read_text())["run"]
        assert f"tiny/{run['experiment']}/{run['digest']}/seed0" in text
        assert run["predictions_sha256"] in text
    assert "tsd_pc − baseline" in text
    assert "of one training each, over pictures alone" in text
    assert "not run" in text
    page = (finished / "results/tiny/report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert not re.search(r"(src|href)='(?!#|data:)", page)


def test_snakemakes_own_report_can_be_made(finished):
    snakemake(options=["--report", "report.html"], cwd=finished)
    text = (finished / "report.html").read_text()
    for word in ("Tables", "Figures", "Runs", "figure5", "all tables"):
        assert word in text


def test_tables_alone_never_train(project):
    plan = planned(project, "tables")
    assert set(plan) <= {"make_tables", "tables", "total"}
    snakemake("tables", cwd=project)
    text = (project / "results/tiny/tables/ablation.md").read_text()
    assert text.count("not run") == 18
    assert not (project / "results/tiny/runs").exists()


def test_one_table_trains_what_it_needs(project):
    edit(
        project / "params/suites/tiny.yaml", lambda s: s.update(experiments=["baseline", "tsd", "tsd_joint", "tsd_pc"])
    )
    assert planned(project, "table2")["train_detector"] == 2
    assert planned(project, "table2", "tables", "report")["train_detector"] == 2
    assert planned(project)["train_detector"] == 4


def test_a_dry_run_is_light(project):
    started = time.monotonic()
    done = run(sys.executable, "-X", "importtime", "-m", "snakemake", "-n", "--config", "suite=tiny", cwd=project)
    assert time.monotonic() - started < 120
    heavy = [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() in {"torch", "mmdet", "mlflow"}]
    assert heavy == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["override"]["schedule"].update(epochs="2 epochs"),
            "override.schedule.epochs: expected a positive",
        ),
        (lambda s: s.update(sedes=[1]), "sedes: unknown key (did you mean 'seeds'?)"),
        (lambda s: s.update(experiments=["tsd_x"]), "no experiment 'tsd_x' in"),
    ],
)
def test_a_mistake_in_params_stops_before_anything_runs(project, change, message):
    edit(project / "params/suites/tiny.yaml", change)
    done = snakemake(options=["-n"], cwd=project, check=False)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "params/suites/tiny.yaml" in done.stdout + done.stderr


def test_an_unknown_suite_is_named(project):
    done = snakemake(options=["-n"], suite="nope", cwd=project, check=False)
    assert done.returncode != 0
    assert "nope.yaml: no such suite; there are: " in done.stdout + done.stderr


def test_a_second_snakemake_on_the_same_folder_is_refused(project):
    locks = project / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/tiny/tracking.json\n")
    (locks / "0.input.lock").write_text("params/tables.yaml\n")
    done = snakemake(cwd=project, check=False)
    assert done.returncode != 0
    assert "lock" in (done.stdout + done.stderr).lower()
    assert not (project / "results/tiny/runs").exists()


def git(*arguments, cwd):
    return run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments, cwd=cwd)


def test_dvc_reproduces_and_a_committed_edit_is_not_passed_off(finished, tmp_path):
    """Fresh clones, pulled results, and an edit that was committed without reproducing."""
    import shutil

    origin = tmp_path / "origin"
    shutil.copytree(finished, origin, ignore=shutil.ignore_patterns("*.db", "mlruns"))
    edit(origin / "dvc.yaml", lambda d: d["stages"]["tables"].update(foreach={"tiny": FOREACH}))
    outs = ("annotations/instances_train.json", "annotations/instances_val.json", "manifest.json", "pictures.tar")
    (origin / "data.dvc").write_text(yaml.safe_dump({"outs": [{"path": f"data/tiny/{name}"} for name in outs]}))
    (origin / ".gitignore").write_text("/data/\n/results/\n/logs/\n.snakemake/\n/mlruns/\nmlflow.db\n__pycache__/\n")
    git("init", "-q", "-b", "main", cwd=origin)
    run("dvc", "init", "-q", cwd=origin)
    run("dvc", "remote", "add", "-q", "-d", "store", tmp_path / "store", cwd=origin)
    run("dvc", "commit", "-q", "-f", "data.dvc", cwd=origin)
    shutil.rmtree(origin / "results")  # the pin enters the digests: reproduce from here
    run("dvc", "repro", "-q", cwd=origin)
    assert "didn't change" in run("dvc", "repro", cwd=origin).stdout
    assert "up to date" in run("dvc", "status", cwd=origin).stdout
    git("add", "-A", cwd=origin)
    git("commit", "-q", "-m", "results", cwd=origin)
    run("dvc", "push", "-q", cwd=origin)

    clone = tmp_path / "clone"
    git("clone", "-q", origin, clone, cwd=tmp_path)
    run("dvc", "pull", "-q", cwd=clone)
    assert "didn't change" in run("dvc", "repro", cwd=clone).stdout
    assert not (clone / "results/tiny/runs").exists()

    edit(origin / "params/experiments.yaml", lambda e: e["experiments"]["tsd_pc"]["head"].update(margin_cls=0.5))
    git("commit", "-q", "-a", "-m", "edit without reproducing", cwd=origin)
    git("pull", "-q", cwd=clone)
    run("dvc", "repro", "-q", cwd=clone)
    trained = {path.parts[-4] for path in (clone / "results/tiny/runs").glob("*/*/*/checkpoint.pth")}
    assert trained == {"tsd_pc"}
    assert "tsd_pc" in run("dvc", "metrics", "show", "--json", cwd=clone).stdout
    run("dvc", "metrics", "diff", "HEAD", cwd=clone)
    run("dvc", "plots", "show", "--out", "plots", cwd=clone)
    assert "training.csv" in (clone / "plots/index.html").read_text()
    assert "up to date" in run("dvc", "status", cwd=clone).stdout


FOREACH = {"target": "all", "data": "data/tiny/manifest.json"}
