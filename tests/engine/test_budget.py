"""The plan that a dry run prints."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import tsd
from tests.workflow.test_pipeline import edit, run
from tsd.engine.budget import format_budget
from tsd.engine.costs import progress, read_speeds
from tsd.engine.networks import models_path, networks_of
from tsd.engine.params import get_runs, load_suite, verified_path
from tsd.errors import InputError
from tsd.files import write_lines
from tsd.report.tables import chosen_tables, load_figures


def rows():
    with Path("params/networks.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def only(*experiments, override=None):
    """A suite's content with these experiments alone, and further settings."""

    def change(content):
        content.pop("experiment_resources", None)
        content.pop("tables", None)
        content.update(experiments=list(experiments))
        content["override"] = {**content.get("override", {}), **(override or {})}

    return change


def budget(name="tiny"):
    suite = load_suite(name)
    params = Path("params")
    return format_budget(suite, get_runs(suite, "d" * 12), chosen_tables(params, suite.tables) | load_figures(params))


def test_the_matrix_of_the_paper_is_planned_before_anything_is_there(project):
    text = budget("coco")
    names = load_suite("coco").experiments
    assert f"trainings: {len(names)}, of which 0 are there and {len(names)} to be done" in text
    hours = (len(names) * 8 + 8) * 24  # one of them on 16
    assert f"  {hours:,} if each fills one job of 24 h" in text
    assert "table2: 2 experiments, 2 of them also above; 2 to be trained" in text  # rows that share a run train once
    assert "figure4: 10 experiments; 10 to be trained" in text
    assert "disk, data: 20 GB" in text


def test_what_was_never_timed_is_estimated_for_each_gpu(project):
    """By hand: 12 epochs of the baseline over 1,000 pictures of 1344 x 800, 209 GMAC each with 512 RoIs."""
    edit(project / "params/suites/coco.yaml", only("baseline", override={"input": {"size": [1344, 800]}}))
    edit(project / "params/sources.yaml", lambda sources: sources["coco"]["pictures"].update(train=1000))
    (row,) = (row for row in rows() if (row["suite"], row["experiment"]) == ("coco", "baseline"))
    gmacs = float(row["gmacs_picture"]) + 0.512 * float(row["gmacs_rois"])
    hours = 13 * 32 * 32 * 6 * gmacs / 12e3 / 3600
    text = budget("coco")
    assert f"GPU-hours, 1 training on 8 GPUs each: about {hours:.1f} on V100, {0.6 * hours:.1f} on A100" in text
    assert "± 50%; nothing was timed here yet" in text


def test_a_small_network_takes_the_least_time_of_a_step(project):
    edit(project / "params/suites/evidence.yaml", only("baseline"))
    suite = load_suite("evidence")
    steps = suite.settings["baseline"]["schedule"]["epochs"] * 250
    pictures = 250 * suite.settings["baseline"]["schedule"]["batch_size"]
    edit(project / "params/suites/evidence.yaml", lambda suite: suite["data"]["generate"].update(train=pictures))
    count = len(suite.seeds)
    hours = f"{float(f'{count * steps * 0.15 / 3600:.2g}'):.1f}"
    text = budget("evidence")
    assert f"about {hours} on V100, {hours} on A100, {hours} on H100" in text
    assert f"{count} trainings of small networks at 0.15 s, the least that the estimate allows a step" in text


def test_a_network_that_nobody_counted_leaves_the_limits(project):
    edit(project / "params/suites/coco.yaml", only("tsd", override={"neck": {"channels": 128}}))
    text = budget("coco")
    assert "GPU-hours, 1 training on 8 GPUs each: 192 if each fills one job of 24 h" in text
    assert "disk, checkpoints: not known before `tsd inspect --suite coco --output results/coco/models.json`" in text
    assert tsd("inspect", "--suite", "coco", "--output", "results/coco/models.json", fresh=True).returncode == 0
    text = budget("coco")
    assert "on A100" in text
    assert "disk, checkpoints: not known" not in text


def test_own_counts_are_not_those_of_another_network(project):
    edit(project / "params/suites/coco.yaml", only("tsd", override={"neck": {"channels": 128}}))
    path = models_path(load_suite("coco"))
    path.parent.mkdir(parents=True)
    facts = {"params_m": 1.0, "gmacs": 2.0, "macs": {"roi_head": 1e9}, "network": "of another"}
    path.write_text(json.dumps({"size": [800, 1344], "proposals": 1000, "models": {"tsd": facts}}))
    assert "disk, checkpoints: not known before" in budget("coco")


def test_steps_that_were_timed_here_stand_for_all(project):
    """The baseline's are its own; TSD's follow by multiply-adds; a pause between two jobs counts for nothing."""

    def change(content):
        content["resources"] = {"gpu": 4, "runtime": 600}
        content["override"]["schedule"] |= {"epochs": 40, "milestones": [30]}

    edit(project / "params/suites/tiny.yaml", change)
    suite = load_suite("tiny")
    runs = get_runs(suite, "d" * 12)
    first = next(run for run in runs if run.experiment == "baseline")
    times = [0, 10, 20, 5000, 5010, 5020]
    first.folder.mkdir(parents=True)
    lines = [{"time": time, "step": 10 * (1 + place), "loss": 1.0} for place, time in enumerate(times)]
    write_lines(first.folder / "log.jsonl", [*lines, {"time": 5021.0, "step": 60, "epoch": 1, "val/AP": 0.1}])
    assert progress(first).seconds == 1.0
    schedule = suite.settings["baseline"]["schedule"]
    steps = schedule["epochs"] * math.ceil(suite.data["generate"]["train"] / schedule["batch_size"])
    networks = networks_of(suite)
    gmacs = [networks[run.experiment].gmacs(run.settings) for run in runs]
    left = [steps - 60 if run is first else steps for run in runs]
    assert min(left) > 0
    ratio = networks["baseline"].gmacs(first.settings)
    hours = 4 * sum(map(math.prod, zip(left, gmacs, strict=True))) / ratio / 3600
    others = sum(run.experiment != "baseline" for run in runs)
    text = budget()
    assert f"GPU-hours, {len(runs)} trainings on 4 GPUs each: {hours:.1f} by steps timed here (baseline 1.00 s" in text
    assert f"which stand for the {others} other" in text


@pytest.mark.parametrize("line", ['{"step": 1, "loss": 1.0}', '{"step": "1", "time": 2}', '{"step": 1, "time": NaN}'])
def test_a_log_that_no_training_wrote_is_named(project, line):
    first = get_runs(load_suite("tiny"), "d" * 12)[0]
    first.folder.mkdir(parents=True)
    (first.folder / "log.jsonl").write_text(f'{{"step": 1, "time": 2.0, "loss": 1.0}}\n{line}\n')
    with pytest.raises(InputError, match=r"log\.jsonl, line 2: expected a step and a time"):
        budget()


def test_a_picture_archives_lists_have_known_numbers(project):
    text = budget("voc")
    assert re.search(r"GPU-hours, 21 trainings on 1 GPU each: about \d+ on V100", text)


def test_too_little_space_for_data_and_checkpoints_is_said(project, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=90e9))
    assert re.search(r"  too little: 118 GB are still to come, and 90 GB are free", budget("coco"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=900e9))
    assert "too little" not in budget("coco")


def test_steps_count_for_the_gpus_that_they_were_timed_on(project):
    def ask(gpus):
        edit(project / "params/suites/coco.yaml", lambda suite: suite["resources"].update(gpu=gpus))
        return re.search(r"GPU-hours.*: ([\d,]+) by steps timed here \(baseline 0.30 s", budget("coco"))[1]

    edit(project / "params/suites/coco.yaml", only("baseline"))
    (first,) = get_runs(load_suite("coco"), "d" * 12)
    first.folder.mkdir(parents=True)
    write_lines(first.folder / "log.jsonl", [{"time": 15.0 * n, "step": 50 * n, "loss": 1.0} for n in range(1, 5)])
    (first.folder / "environment.json").write_text('{"git_commit": null, "git_dirty": null, "processes": 8}')
    assert ask(8) == ask(16) == ask(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.replace("41.753", "nan"), "line 2: expected network,suite,experiment,params_m"),
        (lambda row: row.replace("41.753", "-41.753"), "line 2: expected"),
        (lambda row: row + ",1", "line 2: expected"),
        (lambda row: row[:30], "line 2: expected"),
        (lambda row: row + "\n" + row.replace("41.753", "42"), "lines 2 and 3: [0-9a-f]{12} has different numbers"),
    ],
)
def test_a_broken_record_of_networks_is_named(project, change, said):
    path = Path("params/networks.csv")
    head, first, *rest = path.read_text().splitlines()
    assert first.startswith("ee06e106b5d9,coco,baseline,41.753")
    path.write_text("\n".join([head, change(first), *rest]) + "\n")
    with pytest.raises(InputError, match=f"params/networks.csv, {said}"):
        budget("coco")
    before = path.read_text()
    done = tsd("inspect", "--suite", "tiny", "--record")
    assert done.returncode == 2
    assert "params/networks.csv, line" in done.stderr
    assert path.read_text() == before
    dry = run("snakemake", "-n", "--config", "suite=coco", check=False, cwd=project)
    assert dry.returncode != 0
    assert "params/networks.csv, line" in dry.stdout + dry.stderr


@pytest.mark.parametrize("content", ["[]", '{"train": 0}', '{"train": "many"}'])
def test_what_does_not_say_how_many_pictures_is_named(project, content):
    suite = load_suite("coco")
    path = verified_path(suite, "d" * 12)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(InputError, match="train: expected a number of pictures"):
        budget("coco")


def test_what_is_trained_is_not_counted(project):
    suite = load_suite("tiny")
    for one in get_runs(suite, "d" * 12):
        one.folder.mkdir(parents=True)
        one.checkpoint.touch()
    text = budget()
    assert "and 0 to be done" in text
    assert "hours: nothing is left" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"tflops": {"A100": 20}, "error": 0.5}, "expected the keys error, least_step, tflops"),
        ({"tflops": {}, "error": 0.5, "least_step": 0.1}, "tflops: expected lines of a GPU's name and a number"),
        ({"tflops": {"A100": 0}, "error": 0.5, "least_step": 0.1}, "tflops.A100: expected a number above 0, got 0"),
        ({"tflops": {"A100": 20}, "error": "half", "least_step": 0.1}, "error: expected a number above 0, got 'half'"),
    ],
)
def test_speeds_that_are_none(project, content, said):
    Path("params/gpus.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=f"params/gpus.yaml: {said}"):
        read_speeds(Path())


def test_disk_counts_weights_and_the_states_that_are_kept(project):
    suite = load_suite("tiny")
    networks = networks_of(suite)
    states = {"sgd": 2, "adamw": 3}
    size = sum(
        4e-3 * networks[run.experiment].params_m * (1 + 2 * states[run.settings["schedule"]["optimizer"]])
        for run in get_runs(suite, "d" * 12)
    )
    assert f"disk, checkpoints: {size:.1f} GB" in budget()


def test_a_dry_run_begins_with_the_plan_and_a_run_does_not(project):
    command = ("snakemake", "--cores", "2", "--config", "suite=tiny")
    assert "suite tiny: " in run(*command, "-np", cwd=project).stderr
    assert "suite tiny: " in run(*command, "--dry-run", cwd=project).stderr
    assert "trainings:" not in run(*command, "--list-rules", cwd=project).stderr
