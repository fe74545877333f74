"""The plan that a dry run prints."""

import json
from pathlib import Path

from tests.workflow.test_pipeline import edit, run
from tsd.engine.budget import format_budget
from tsd.engine.params import get_runs, load_suite
from tsd.report.tables import chosen_tables, load_figures


def budget(name="tiny"):
    suite = load_suite(name)
    params = Path("params")
    return format_budget(suite, get_runs(suite, "d" * 12), chosen_tables(params, suite.tables) | load_figures(params))


def test_the_matrix_of_the_paper_is_planned_before_anything_is_there(project):
    text = budget("coco")
    names = load_suite("coco").experiments
    assert f"trainings: {len(names)}, of which 0 are there and {len(names)} to be done" in text
    hours = (len(names) * 8 + 8) * 24  # one of them on 16
    assert f"GPU-hours on 8 or 16 GPUs each: {hours:,} if each of the {len(names)} trainings takes its job's" in text
    assert "table2: 2 experiments, 2 of them also above; 2 to be trained" in text  # rows that share a run train once
    assert "figure4: 10 experiments; 10 to be trained" in text
    assert "disk, data: 20 GB" in text
    assert "disk, checkpoints: not known before `tsd inspect --suite coco" in text


def test_finished_runs_say_what_the_others_will_take(project):
    edit(project / "params/suites/tiny.yaml", lambda suite: suite.update(resources={"gpu": 4, "runtime": 600}))
    suite = load_suite("tiny")
    runs = get_runs(suite, "d" * 12)
    done = runs[0]
    done.folder.mkdir(parents=True)
    (done.folder / "checkpoint.pth").touch()
    status = {"status": "FINISHED", "error": None}
    status |= {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:30:00+00:00"}
    (done.folder / "status.json").write_text(json.dumps(status))
    rest = len(runs) - 1
    text = budget()
    assert f"of which 1 are there and {rest} to be done" in text
    assert f"GPU-hours on 4 GPUs each: {rest * 40} if each of the {rest} trainings takes its" in text
    assert "its job's limit of 10 h" in text
    assert f"{rest * 6:.1f} by the 1 that are finished (1.50 h each)" in text


def test_disk_counts_weights_and_the_states_that_are_kept(project):
    suite = load_suite("tiny")
    models = Path("results/tiny/models.json")
    models.parent.mkdir(parents=True)
    models.write_text(json.dumps({"models": {name: {"params_m": 100.0} for name in suite.experiments}}))
    states = {"sgd": 2, "adamw": 3}
    size = sum(0.4 * (1 + 2 * states[run.settings["schedule"]["optimizer"]]) for run in get_runs(suite, "d" * 12))
    assert f"disk, checkpoints: {size:.1f} GB" in budget()


def test_a_dry_run_begins_with_the_plan_and_a_run_does_not(project):
    command = ("snakemake", "--cores", "2", "--config", "suite=tiny")
    assert "suite tiny: " in run(*command, "-np", cwd=project).stderr
    assert "suite tiny: " in run(*command, "--dry-run", cwd=project).stderr
    assert "trainings:" not in run(*command, "--list-rules", cwd=project).stderr
