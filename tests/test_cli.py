"""The command line: exit statuses and messages."""

import errno
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
import yaml

from tests.conftest import project_with_scenes, tsd
from tsd.cli import main
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, get_runs, load_suite


def run_of(experiment):
    suite = load_suite("tiny")
    return get_run(suite, experiment, 0, data_digest(suite))


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for verb in (
        "data",
        "config",
        "train",
        "predict",
        "evaluate",
        "tables",
        "figures",
        "explain",
        "reproduce",
        "prune",
        "mlflow",
    ):
        assert verb in text


def test_bad_usage_is_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert stop.value.code == 2
    assert "--experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--experiment", "baseline", "--seed", "-1"],
        ["train", "--experiment", "baseline", "--seed", "4294967296"],
        ["inspect", "--size", "-1", "5"],
        ["inspect", "--proposals", "0"],
        ["predict", "--experiment", "baseline", "--limit", "0"],
        ["evaluate", "draws", "--annotations", "a", "--predictions", "b", "--output", "c", "--draws", "0"],
    ],
)
def test_a_number_out_of_range_is_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "expected an integer from" in capsys.readouterr().err


def test_bad_input_is_2_and_a_sentence(project, capsys):
    assert main(["train", "--suite", "nope", "--experiment", "baseline"]) == 2
    assert main(["train", "--suite", "tiny", "--experiment", "baselin"]) == 2
    assert "did you mean 'baseline'?" in capsys.readouterr().err
    assert main(["data", "generate", "--out", "x", "--set", "size"]) == 2
    assert main(["data", "generate", "--out", "x", "--set", "sizes=3"]) == 2
    assert "generate.sizes: unknown key" in capsys.readouterr().err
    assert main(["data", "generate", "--out", "x", "--set", "size=["]) == 2
    assert "--set size=[: line 1 column 2: " in capsys.readouterr().err
    assert not (project / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "tiny", "--set", "seed=3"], "expected --suite NAME, whose file describes the scenes"),
        (["--suite", "tiny", "--out", "x"], "expected --suite NAME, whose file describes the scenes"),
        (["--suite", "tiny", "--seed", "3"], "--seed: only with --scale"),
        (["--out", "x", "--set", "seed=3", "--fraction", "0.5"], "--fraction: only with --scale"),
        (["--out", "x", "--set", "size=[1"], "--set size=[1: line 1 column 3: expected"),
    ],
)
def test_scenes_are_described_by_a_suite_or_by_options(project, capsys, arguments, message):
    assert main(["data", "generate", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (project / "data").exists()
    assert not (project / "x").exists()


VERBS = {
    "tables": ["tables", "--output", "out/tables"],
    "figures": ["figures", "--output", "out/figures"],
    "runs": ["runs", "--output", "out/runs.csv"],
    "claims": ["claims", "--output", "out/claims.md"],
    "manifest": ["data", "manifest", "--output", "out/manifest.json"],
}


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    return project_with_scenes(tmp_path / "project", monkeypatch)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_refuses_is_a_sentence(scenes, monkeypatch, capsys, verb, code):
    def refuse(*names):
        raise OSError(code, os.strerror(code), *names[:1])

    monkeypatch.setattr(os, "replace", refuse)
    assert main([*VERBS[verb], "--suite", "tiny"]) == 1
    *before, line = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"out/\S+: {os.strerror(code)}", line)
    assert all("pictures will be read again" in text for text in before)
    assert not [path for path in (scenes / "out").rglob("*") if path.is_file()]


def test_a_file_that_the_disk_has_no_room_for_is_named(scenes, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        status = main(["tables", "--suite", "tiny", "--output", "out/tables"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert capsys.readouterr().err == "out/tables/tables.html: File too large\n"
    assert not list((scenes / "out").rglob(".*"))


def test_a_folder_that_can_not_be_made_is_named(scenes, capsys):
    assert main(["runs", "--suite", "tiny", "--output", "/proc/nowhere/runs.csv"]) == 1
    assert capsys.readouterr().err == "/proc/nowhere: No such file or directory\n"


def test_outside_the_repository_it_says_where_to_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explain"]) == 2
    assert "run the command in the root of the repository" in capsys.readouterr().err


def test_evaluate_coco_writes_metrics(tmp_path):
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 50}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 40, 40], "area": 1600, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 40, 40], "score": 0.5}]
    for name, content in (("truth", truth), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = ["--annotations", "truth.json", "--predictions", "found.json", "--output", "out/metrics.json"]
    done = tsd("evaluate", "coco", *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AP 100.0" in done.stdout
    assert json.loads((tmp_path / "out/metrics.json").read_text())["metrics"]["AP"] == pytest.approx(1)
    (tmp_path / "found.json").write_text("[{]")
    done = tsd("evaluate", "coco", *files, cwd=tmp_path)
    assert done.returncode == 2
    assert "found.json: not valid JSON: line 1 column 3" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_of_the_users_own_is_checked_before_training(project, tmp_path):
    from PIL import Image

    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 50}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 1, "bbox": [30, 1, 40, 40], "area": 1600, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (project / "own").mkdir()
    Image.new("RGB", (50, 50)).save(project / "own/a.jpg")
    (project / "own/a.json").write_text(json.dumps(truth))
    split = "{annotations: own/a.json, images: own}"
    (project / "params/suites/own.yaml").write_text(
        f"description: mine\ndata: {{format: coco, train: {split}, val: {split}}}\n"
        "experiments: [baseline]\nseeds: [0]\n"
    )
    done = tsd("data", "verify", "--suite", "own")
    assert done.returncode == 2
    assert "annotation 5" in done.stderr
    assert "outside its picture of 50x50" in done.stderr
    truth["annotations"][0]["bbox"] = [10, 1, 0, 40]
    (project / "own/a.json").write_text(json.dumps(truth))
    done = tsd("data", "verify", "--suite", "own")
    assert done.returncode == 2
    assert "annotation 5" in done.stderr
    truth["annotations"][0]["bbox"] = [10, 1, 30, 40]
    (project / "own/a.json").write_text(json.dumps(truth))
    assert tsd("data", "verify", "--suite", "own").returncode == 0
    (project / "own/a.jpg").unlink()
    assert "a.jpg" in tsd("data", "verify", "--suite", "own").stderr


@pytest.mark.parametrize("option", [("--limit", "2"), ("--checkpoint", "other.pth")])
def test_predictions_that_are_not_the_runs_own_need_a_place_of_their_own(project, capsys, option):
    assert main(["predict", "--suite", "tiny", "--experiment", "baseline", *option]) == 2
    assert "give --output" in capsys.readouterr().err


def test_prune_leaves_a_run_that_is_being_trained_and_what_is_no_run(project, capsys):
    current = run_of("baseline").folder
    current.mkdir(parents=True)
    folder = current.parents[1] / ("0" * 12)
    for name in ("seed0", "seed1", "seed_notes"):
        (folder / name).mkdir(parents=True)
        (folder / name / "log.jsonl").touch()
    with (folder / "seed1/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["prune", "--suite", "tiny", "--yes"]) == 0
    assert "seed1: left, a process is training this run" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["seed1", "seed_notes"]
    assert main(["prune", "--suite", "tiny", "--yes"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["seed_notes"]
    assert current.exists()


@pytest.mark.parametrize("text", [None, "", "outs:"])
def test_without_its_pin_nothing_of_a_suite_is_removed_planned_or_verified(project, capsys, text):
    folder = run_of("baseline").folder
    folder.mkdir(parents=True)
    (project / "data.dvc").unlink()
    if text is not None:
        (project / "data.dvc").write_text(text)
    for words in (["prune", "--yes"], ["data", "verify"], ["explain"]):
        assert main([*words, "--suite", "tiny"]) == 2
        assert "data.dvc: " in capsys.readouterr().err
    assert folder.exists()


def test_prune_removes_all_runs_only_by_name(project, capsys):
    """An edit of the defaults makes every run stale: perhaps it was a slip."""
    folders = [run_of(name).folder for name in ("baseline", "tsd_pc")]
    for folder in folders:
        folder.mkdir(parents=True)
    published = run_of("baseline").metrics_file
    published.parent.mkdir(parents=True)
    published.write_text("{}")
    suite = project / "params/suites/tiny.yaml"
    content = yaml.safe_load(suite.read_text())
    content["override"]["schedule"]["lr"] = 0.5
    suite.write_text(yaml.safe_dump(content))
    paths = [*map(str, sorted(folders)), str(published)]
    assert main(["prune", "--suite", "tiny", "--yes"]) == 2
    said = capsys.readouterr()
    assert said.out.split() == paths
    assert "these are all runs and all published metrics of suite tiny: nothing is removed" in said.err
    assert main(["prune", "--suite", "tiny", "--yes", paths[0], "results/tiny/runs/baseline"]) == 2
    assert "results/tiny/runs/baseline: not among" in capsys.readouterr().err
    assert all((project / path).exists() for path in paths)
    assert main(["prune", "--suite", "tiny", paths[0]]) == 2
    assert main(["prune", "--suite", "tiny", "--yes", *paths]) == 0
    assert not any((project / path).exists() for path in paths)


def test_prune_removes_nothing_while_the_data_is_away(project, capsys):
    run = get_runs(load_suite("evidence-photos"), data_digest(load_suite("evidence-photos")))[0]
    folder = project / run.folder.parents[1] / ("1" * 12) / "seed0"
    folder.mkdir(parents=True)
    assert main(["prune", "--suite", "evidence-photos", "--yes"]) == 2
    assert "instances_train2017.json: no such file" in capsys.readouterr().err
    assert folder.exists()


STALL = """
import os, sys, time
def stall(_):
    print(flush=True)
    time.sleep(60)
os.fsync = stall
from tsd.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["tables", "claims", "runs"])
def test_sigterm_leaves_nothing_half_written(project, verb):
    (project / "out").mkdir()
    words = (verb, "--suite", "tiny", "--output", f"out/{verb}.md")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STALL, *words], **pipes) as process:
        process.stdout.readline()
        assert any(".tmp" in path.name for path in project.joinpath("out").rglob("*"))
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert error.splitlines()[-1] == "stopped by signal SIGTERM"
    assert not [path for path in (project / "out").rglob("*") if path.is_file()]
