"""Open Images from the server to Table 6, on generated scenes: the rules of the real suite."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tests.conftest import copy_project
from tests.workflow.test_pipeline import edit, run, snakemake
from tsd.data.pictures import JOURNAL, read_pictures

SUITE = "openimages-demo"


def small(content):
    content["data"]["generate"] |= {"train": 80, "val": 24}
    content["override"]["schedule"] |= {"epochs": 1, "milestones": []}
    content["override"]["train_data"] = {"group_of": "ignore"}
    content["monitor"] |= {"checkpoint_steps": 2}


def project(target):
    with pytest.MonkeyPatch.context() as patch:
        folder = copy_project(target, patch)
    edit(folder / f"params/suites/{SUITE}.yaml", small)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = project(tmp_path_factory.mktemp("openimages") / "project")
    snakemake(cwd=folder, suite=SUITE)
    return folder


def metrics(folder):
    """experiment → metrics file."""
    return {
        content["run"]["experiment"]: content
        for path in (folder / "results" / SUITE / "metrics").glob("*.json")
        for content in [json.loads(path.read_text())]
    }


def test_table_6_shows_what_was_measured_and_what_was_not(finished):
    table = pd.read_csv(finished / "results" / SUITE / "tables/table6.csv").set_index(["row", "metric"])
    found = metrics(finished)
    for row, experiment in (("resnet50", "baseline"), ("resnet50_tsd", "tsd_pc")):
        value = found[experiment]["metrics"]["AP50_val"]
        assert table.loc[(row, "AP50_val"), "mean"] == pytest.approx(100 * value)
        assert pd.isna(table.loc[(row, "AP50_lb"), "mean"])
    assert table.loc[("resnet50", "AP50_val"), "paper"] == 64.64
    assert (len(table), int(table["n"].sum())) == (
        8 * 4,
        2 * 3,
    )  # two rows are measured, all columns but the leaderboard
    assert "not run" in (finished / "results" / SUITE / "tables/table6.md").read_text()


def test_both_protocols_judge_the_same_predictions(finished):
    for content in metrics(finished).values():
        assert content["protocol"]["name"] == "official"
        assert content["protocols"]["released"]["protocol"]["name"] == "released"
        assert {"AP50_val", "AP50_val_boxed", "AP50_val_released", "AP50_val_boxed_released"} == set(content["metrics"])
        assert content["metrics"]["AP50_val_released"] == content["protocols"]["released"]["metrics"]["AP50_val"]
        assert content["counts"]["pictures"] == 24


def test_the_evaluation_by_hand_gives_the_same(finished, tmp_path):
    content = metrics(finished)["tsd_pc"]
    files = finished / "data" / SUITE / "annotations"
    (predictions,) = (finished / "results" / SUITE / "runs/tsd_pc").glob("*/seed0/eval/*/predictions.csv")
    options = {
        "boxes": files / "challenge-2019-validation-detection-bbox.csv",
        "image-labels": files / "challenge-2019-validation-detection-human-imagelabels.csv",
        "classes": next(files.glob("*classes*")),
        "hierarchy": next(files.glob("*hierarchy*")),
        "predictions": predictions,
        "output": tmp_path / "metrics.json",
    }
    arguments = [part for name, path in options.items() for part in (f"--{name}", path)]
    run("tsd", "evaluate", "openimages", "--expand-predictions", *arguments, "--protocol", "released", cwd=finished)
    by_hand = json.loads((tmp_path / "metrics.json").read_text())
    assert by_hand["metrics"]["AP50_val"] == content["metrics"]["AP50_val_released"]


def test_only_pictures_that_are_drawn_are_fetched(finished):
    (plan,) = (finished / "results" / SUITE / "sampling").glob("*.txt")
    (facts,) = json.loads(plan.with_suffix(".json").read_text())
    drawn = plan.read_text().split()
    rows = read_pictures(finished / "data" / SUITE / "pictures.parquet").to_pylist()
    assert [row["id"] for row in rows if row["split"] == "train"] == drawn
    assert len([row for row in rows if row["split"] == "validation"]) == 24
    assert facts["draws"] == facts["pictures"]  # an epoch; pictures of groups alone teach nothing and are left out
    assert facts["touched"] == len(drawn) < 80
    draws = [entry["draws"] for entry in facts["classes"] if entry["pictures"]]
    assert max(draws) - min(draws) <= 1


def test_a_second_run_does_nothing(finished):
    assert planned_for(finished) == {}


def planned_for(folder):
    text = run("snakemake", "-n", "--quiet", "rules", "--config", f"suite={SUITE}", cwd=folder).stdout
    return {
        parts[0]: int(parts[1]) for line in text.splitlines() if len(parts := line.split()) == 2 and parts[1].isdigit()
    }


def test_another_sampling_trains_anew_and_plans_anew(finished, tmp_path):
    """Without fetching the annotations again: they are the same."""
    path = finished / f"params/suites/{SUITE}.yaml"
    before = path.read_text()
    try:
        edit(path, lambda content: content["override"]["train_data"].update(sampling="uniform"))
        jobs = planned_for(finished)
        assert {"plan_sampling", "fetch_pictures", "train_detector"} <= set(jobs)
        assert jobs["train_detector"] == 2
        assert "fetch_annotations" not in jobs
    finally:
        path.write_text(before)


def wait_and_kill(process, ready):
    """SIGKILL the process group as soon as it is ready; it must not have ended before."""
    for _ in range(6000):
        assert process.poll() is None, "it ended before it could be killed"
        if ready():
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_while_fetching_and_while_training_it_ends_with_the_same_figures(finished, tmp_path):
    folder = project(tmp_path / "project")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    base = [sys.executable, "-m", "tsd.cli"]
    options = {"cwd": folder, "env": env, "start_new_session": True, "stderr": subprocess.DEVNULL}
    run("tsd", "data", "fetch", "--suite", SUITE, "--what", "annotations", cwd=folder)
    run("tsd", "sample", "--suite", SUITE, cwd=folder)
    journal = folder / "data" / SUITE / JOURNAL
    fetching = subprocess.Popen(
        [*base, "data", "fetch", "--suite", SUITE, "--what", "pictures", "--threads", "1"], **options
    )
    wait_and_kill(fetching, lambda: journal.exists() and journal.read_text().count("\n") >= 5)
    kept = journal.read_text().count("\n")
    assert not (folder / "data" / SUITE / "pictures.json").exists()
    log = snakemake("data", cwd=folder, suite=SUITE).stdout
    total = read_pictures(folder / "data" / SUITE / "pictures.parquet").num_rows
    assert kept < total
    missing = int(log.split(f" of {total} pictures to fetch")[0].split()[-1])
    assert missing in (total - kept, total - kept - 1)  # the journal's last line may have been cut
    training = subprocess.Popen([*base, "train", "--suite", SUITE, "--experiment", "tsd_pc", "--no-mlflow"], **options)
    runs = folder / "results" / SUITE / "runs/tsd_pc"
    wait_and_kill(training, lambda: any(runs.glob("*/seed0/checkpoints/*4.pth")))
    assert not list(runs.glob("*/seed0/checkpoint.pth"))
    snakemake(cwd=folder, suite=SUITE)
    expected, found = metrics(finished), metrics(folder)
    assert set(expected) == set(found) == {"baseline", "tsd_pc"}
    for name in expected:
        for key in ("metrics", "classes", "counts"):
            assert found[name][key] == expected[name][key]
        assert found[name]["run"]["predictions_sha256"] == expected[name]["run"]["predictions_sha256"]


def test_the_real_suite_can_be_planned_without_its_data(finished, tmp_path):
    """Eight trainings; its digest comes from the published ones."""
    folder = project(tmp_path / "project")
    text = run("snakemake", "-n", "--quiet", "rules", "--config", "suite=openimages", cwd=folder).stdout
    assert "train_detector" in text
