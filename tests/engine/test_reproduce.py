"""A published run, made anew and compared; and everything that keeps it from being so, named."""

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml

import tsd as package
from tests.conftest import ROOT, end, fork, once, project_with_scenes, tsd
from tests.workflow.test_pipeline import edit
from tsd.cli import main
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite

NAME = "tiny/baseline/seed0"
SUITE = Path("params/suites/tiny.yaml")
COMMIT = "c" * 40


def run_of():
    suite = load_suite("tiny")
    return get_run(suite, "baseline", 0, data_digest(suite))


def folder(number=1) -> Path:
    return Path("reproduced", "tiny", "baseline", run_of().digest, "seed0", str(number))


def publish(place: Path) -> None:
    """A project whose suite `tiny` has a finished run; its metrics are in ``published/tiny`` too."""
    with pytest.MonkeyPatch.context() as patch:
        project_with_scenes(place / "project", patch)
        options = ("--suite", "tiny", "--experiment", "baseline")
        run = run_of()
        metrics = run.eval_folder / "metrics.json"
        written = ("--predictions", run.predictions, "--output", metrics, "--run-folder", run.folder, "--no-mlflow")
        for words in (
            ("train", *options, "--no-mlflow"),
            ("predict", *options),
            ("evaluate", "coco", "--annotations", load_suite("tiny").split("val")[0], *written),
        ):
            done = tsd(*words)
            assert done.returncode == 0, done.stderr
        target = Path("published/tiny") / run.metrics_file.name
        target.parent.mkdir(parents=True)
        shutil.copy(metrics, target)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The published metrics file of a copy of that project, which is the current folder."""
    shutil.copytree(once("published", publish) / "project", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    (path,) = Path("published").glob("tiny/*.json")
    return path


@pytest.fixture
def recorded(project):
    """The metrics file of a run of the suite `tiny` that was never made, in the current project."""
    run = run_of()
    facts = {"suite": "tiny", "experiment": "baseline", "seed": 0, "predictions_sha256": "a" * 64}
    facts |= {"digest": run.digest, "test_digest": run.test_digest, "data_digest": run.data_digest}
    path = Path("published/tiny") / run.metrics_file.name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metrics": {"AP": 0.5, "AP50": None}, "run": facts}))
    return path


def change(path: Path, **facts) -> Path:
    """Write a metrics file with other facts of its run, without those that are None; returns the file."""
    content = json.loads(path.read_text())
    content["run"] = {key: value for key, value in (content["run"] | facts).items() if value is not None}
    path.write_text(json.dumps(content))
    return path


def change_run(path: Path, **facts) -> Path:
    """The same, under the name that goes with the facts."""
    run = json.loads(change(path, **facts).read_text())["run"]
    return path.rename(path.with_name("{experiment}-seed{seed}-{digest}-{test_digest}.json".format(**run)))


def commit() -> str:
    """Commit the project's params in a git repository of its own; returns the commit."""
    author = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for words in (
        ["init", "-q"],
        ["add", "params", "workflow", "data.dvc", "tsd/__init__.py"],
        [*author, "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def contents(*places: str) -> dict[str, str]:
    """Digest of every file below, by its path."""
    files = [path for place in places for path in Path(place).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def reproduce_and_kill(step: int) -> None:
    """Start making the run anew, and kill it hard after log line ``step``."""
    with tempfile.TemporaryFile() as output:
        words = ["reproduce", NAME, "--evidence", "published"]
        process = fork(words, Path.cwd(), {"OMP_NUM_THREADS": "1"}, (output.fileno(), output.fileno()))
        log, deadline = folder() / "log.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and process.is_alive():
            if log.exists() and f'"step": {step},' in log.read_text():
                break
            time.sleep(0.01)
        process.kill()
        assert end(process) == -9


def with_other_loss(path: Path, step: int) -> list:
    losses = json.loads(path.read_text())["run"]["losses"]
    return [[number, loss + (number == step) * 0.125] for number, loss in losses]


def test_killed_stopped_and_resumed_it_is_identical_and_leaves_results_alone(published, capsys):
    before = contents("results", "data", "published")
    reproduce_and_kill(step=3)
    assert not (folder() / "checkpoint.pth").exists()
    other = change(Path(shutil.copy(published, "other.json")), losses=with_other_loss(published, 5))
    stopped = tsd("reproduce", NAME, "--evidence", other, "--stop")
    assert stopped.returncode == 1, stopped.stderr
    assert "going on in" in stopped.stderr
    assert re.search(r"step 5: loss \S+, recorded is \S+: they differ", stopped.stderr)
    assert re.fullmatch(rf"{NAME}: DIFFERS: losses first differ at step 5: .* \(-0\.125\)\n", stopped.stdout)
    again = tsd("reproduce", NAME, "--evidence", other, "--stop")
    assert (again.returncode, again.stdout) == (1, stopped.stdout)
    done = tsd("reproduce", NAME, "--evidence", "published", "--output", "report.json")
    assert done.returncode == 0, done.stderr
    assert "resuming after step 5" in done.stderr
    assert "they differ" not in done.stderr
    assert f"{NAME}: identical to the bit: predictions, " in done.stdout
    assert " and 6 losses\n" in done.stdout
    assert "machine     and versions: as recorded" in done.stdout
    assert "in 3 attempts (not counted: 1 that was killed)" in done.stdout
    report = json.loads(Path("report.json").read_text())
    assert report == json.loads((folder() / "report.json").read_text())
    assert report["identical"] is True
    assert report["predictions_sha256"]["here"] == json.loads(published.read_text())["run"]["predictions_sha256"]
    assert contents("results", "data", "published") == before
    assert main(["reproduce", NAME, "--evidence", "published", "--dry-run"]) == 0
    rehearsal = capsys.readouterr().out
    assert ": the scenes in data/tiny are checked first\n" in rehearsal
    assert (
        "to train, by 1 training here, at most" in rehearsal
    )  # that in results/: the repetition was not made in one go
    assert f"  folder     {folder(2)}, a new one" in rehearsal


def test_each_thing_that_differs_is_named(published):
    """The training is there, as a killed command leaves it: only what comes after it is done."""
    shutil.copytree(run_of().folder, folder(), ignore=shutil.ignore_patterns("eval"))
    (folder() / "reproduction.json").write_text('{"attempts": [{"started": "", "seconds": 61.2}]}')
    environment = json.loads(published.read_text())["run"]["environment"]
    change(
        published,
        predictions_sha256="b" * 64,
        losses=with_other_loss(published, 4),
        environment=environment | {"cpu": "Another", "threads": 2, "pretrained_sha256": "d" * 64},
    )
    content = json.loads(published.read_text())
    content["metrics"]["AP"] += 0.25
    content["per_class"][1]["AP"] = 2
    published.write_text(json.dumps(content))
    done = tsd("reproduce", NAME, "--evidence", published)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{NAME}: DIFFERS from {published}"
    assert lines[1].startswith(f"  weights     it started from other ones: recorded SHA-256 {'d' * 64}, here None")
    assert lines[2].startswith("  losses      first differ at step 4: recorded ")
    assert lines[3].startswith(f"  predictions SHA-256 recorded {'b' * 16}…, here ")
    assert re.match(r"  figures     2 of \d+ differ:", lines[4])
    assert re.match(r"    AP: recorded \S+, here \S+ \(-0.25\)", lines[5])
    assert re.match(r"    per_class\.1 \(.+\)\.AP: recorded 2, here ", lines[6])
    assert any(re.match("    cpu: recorded Another, here .", line) for line in lines)
    assert "    threads: recorded 2, here 1 (-1)" in lines
    assert any(re.match(r"  took 1 min 1 s to train, \d+ s to predict and evaluate", line) for line in lines)
    report = json.loads((folder() / "report.json").read_text())
    assert report["identical"] is False
    assert report["losses"]["first_difference"]["step"] == 4
    assert [one["recorded"] for one in report["metrics"]["differences"]] == [content["metrics"]["AP"], 2]
    assert {one["name"] for one in report["machine"]} == {"pretrained_sha256", "threads", "cpu"}


def test_settings_that_have_changed_are_taken_from_the_runs_commit_and_scenes_made_for_it(published):
    """Up to the step whose loss is made another, the training is the one that was published."""
    change(published, losses=with_other_loss(published, 6), git_commit=commit(), git_dirty=True)

    def edited(suite):
        suite["override"]["schedule"]["lr"] = 0.1
        suite["data"]["generate"]["seed"] = 8

    edit(SUITE, edited)
    assert tsd("data", "generate", "--suite", "tiny", "--force").returncode == 0
    before = contents("data", "results")
    done = tsd("reproduce", NAME, "--evidence", published, "--stop")
    assert done.returncode == 1, done.stderr
    assert "settings: those of commit" in done.stderr
    assert "warning: published/tiny/" in done.stderr  # of changes that were not committed
    assert "DIFFERS: losses first differ at step 6: " in done.stdout
    assert Path("reproduced/data", json.loads(published.read_text())["run"]["data_digest"], "pictures.tar").is_file()
    assert contents("data", "results") == before


def test_a_rehearsal_says_what_would_be_done_and_does_nothing(recorded, capsys):
    change(recorded, losses=[[3, 0.5], [6, 0.25]], runtime={"median_ms": 500.0, "pictures": 6, "device": "a CPU"})
    before = contents(".")
    assert main(["reproduce", NAME, "--evidence", "published", "--dry-run"]) == 0
    lines = {line[2:12].strip(): line[13:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["published"] == f"{recorded}: AP 0.5000"
    assert lines["settings"].startswith(f"those of this checkout: digest {run_of().digest}")
    assert lines["data"].endswith(": 12 + 6 scenes are generated in data/tiny")
    assert lines["training"] == "2 epochs of 4 pictures a step, 6 steps, 1 process on no GPU, 1 thread each"
    assert (
        lines["time"]
        == "training not measured here, at most 10 min 0 s by the suite's limit, 3 s to predict, by the record"
    )
    assert lines["compared"].startswith("2 losses while it trains, predictions by SHA-256, all figures, no machine")
    assert lines["folder"] == f"{folder()}, a new one"
    assert contents(".") == before


def test_other_weights_than_those_recorded_are_the_first_thing_that_is_said(recorded, monkeypatch):
    edit(SUITE, lambda suite: suite["override"]["backbone"].update(pretrained="resnet18"))
    Path("weights.pth").write_bytes(b"not what it was")
    monkeypatch.setenv("TSD_WEIGHTS", "weights.pth")
    run = run_of()
    recorded = change_run(recorded, digest=run.digest, environment={"pretrained_sha256": "d" * 64})
    done = tsd("reproduce", NAME, "--evidence", recorded)
    here = hashlib.sha256(b"not what it was").hexdigest()
    warning = f"warning: weights.pth: other weights than those recorded: its SHA-256 is {here}, recorded is {'d' * 64}"
    assert warning in done.stderr
    assert done.returncode == 2  # and then they can't be used at all
    assert "weights.pth: refused: not a whole checkpoint" in done.stderr


def test_two_commands_do_not_make_the_same_run_anew(recorded, capsys):
    from tsd.files import exclusive

    folder().mkdir(parents=True)
    with exclusive(folder().parent / ".lock", ""):
        assert main(["reproduce", NAME, "--evidence", "published"]) == 2
    assert "another process makes this run anew" in capsys.readouterr().err


def test_it_is_not_to_be_started_by_torchrun(recorded, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["reproduce", NAME, "--evidence", "published"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def refused(capsys, *words) -> str:
    """The sentence with which a rehearsal ends."""
    assert main(["reproduce", NAME, "--evidence", "published", "--dry-run", *words]) == 2
    return capsys.readouterr().err


def new_rate(suite):
    suite["override"]["schedule"]["lr"] = 0.1


def test_an_unknown_commit_is_named_and_how_to_get_it(recorded, capsys):
    change(recorded, git_commit=COMMIT)
    edit(SUITE, new_rate)
    text = refused(capsys)
    assert (
        f"{recorded}: params/: the training's settings of baseline have digest {run_of().digest}, recorded is" in text
    )
    assert f"git commit {COMMIT} is not in this clone: `git fetch origin {COMMIT}`" in text


def test_without_a_commit_former_settings_can_not_be_had(recorded, capsys):
    edit(SUITE, new_rate)
    assert "It tells no git commit to take the former settings from" in refused(capsys)


def test_settings_of_the_test_that_have_changed_are_told_from_those_of_the_training(recorded, capsys):
    edit(SUITE, lambda suite: suite["override"]["test"].update(proposals=40))
    text = refused(capsys)
    assert "the test's settings of baseline have digest" in text
    assert "training's" not in text


@pytest.mark.parametrize("has_field", [True, False])
def test_a_revision_that_has_moved_sends_to_a_worktree(recorded, capsys, monkeypatch, has_field):
    """Told by the file, or by the commit's code."""
    before = commit()
    change(recorded, git_commit=before, revision=package.REVISION if has_field else None)
    monkeypatch.setattr(package, "REVISION", package.REVISION + 1)
    text = refused(capsys)
    assert f"tsd.REVISION was {package.REVISION - 1} and is {package.REVISION}" in text
    assert f"git worktree add ../tsd-{before[:8]} {before} && cd ../tsd-{before[:8]} && make setup" in text
    assert f"results/tiny/metrics/{recorded.name}" in text


@pytest.mark.parametrize(
    ("dirty", "message"), [(True, "changes that were not committed, and nobody"), (False, "git worktree add")]
)
def test_a_digest_that_neither_params_nor_commit_have(recorded, capsys, dirty, message):
    recorded = change_run(recorded, digest="0" * 12, git_commit=commit(), git_dirty=dirty)
    text = refused(capsys)
    assert "params/: the training's settings" in text
    assert f"{commit_of(recorded)}:params/: the training's settings" in text
    assert message in text


def commit_of(path: Path) -> str:
    return json.loads(path.read_text())["run"]["git_commit"][:8]


def test_an_experiment_that_is_gone_from_params_is_found_in_the_commit(recorded, capsys):
    change(recorded, git_commit=commit())
    edit(SUITE, lambda suite: suite.update(experiments=["tsd_pc"]))
    assert main(["reproduce", NAME, "--evidence", "published", "--dry-run"]) == 0
    assert f"settings   those of commit {commit_of(recorded)}: digest" in capsys.readouterr().out


def test_scenes_of_another_digest_can_not_be_made(recorded, capsys):
    recorded = change_run(recorded, git_commit=commit(), data_digest="0" * 12, **digests_with_data("0" * 12))
    text = refused(capsys)
    assert f"params/: the data has digest {run_of().data_digest}, recorded is {'0' * 12}" in text
    assert "Generated scenes follow from data.generate of params/suites/tiny.yaml and the pin in data.dvc" in text


def digests_with_data(digest: str) -> dict[str, str]:
    run = get_run(load_suite("tiny"), "baseline", 0, digest)
    return {"digest": run.digest, "test_digest": run.test_digest}


@pytest.mark.parametrize("classes", [{"classes": 4}, {}])
def test_data_of_ones_own_that_is_not_here_is_asked_for(recorded, capsys, classes):
    split = {"annotations": "mine/all.json", "images": "mine"}
    edit(SUITE, lambda suite: suite.update(data={"format": "coco", "train": split, "val": split, **classes}))
    recorded = change_run(recorded, data_digest="0" * 11 + "1", **digests_with_data("0" * 11 + "1"))
    text = refused(capsys)
    assert "the data is not here" in text
    assert "Put the data that it was made with where params/suites/tiny.yaml says" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON: line 1 column 2"),
        ("[]", "expected object, got []"),
        ('{"metrics": {}}', "run: missing key"),
        ('{"metrics": {"AP": "high"}, "run": {}}', "metrics.AP: expected number or null"),
        ('{"metrics": {"AP": NaN}, "run": {}}', "metrics.AP: expected a finite number"),
    ],
)
def test_a_broken_file_is_named_with_the_place(recorded, capsys, content, message):
    recorded.write_text(content)
    assert f"{recorded}: {message}" in refused(capsys)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"digest": None}, "run.digest: missing key"),
        ({"digest": "xyz"}, "run.digest: expected a digest of 12 hexadecimal digits"),
        ({"seed": 1.0}, "run.seed: expected an integer from 0, got 1.0"),
        ({"git_commit": "--output=x"}, "run.git_commit: '--output=x' does not match"),
        ({"losses": [[1, 0.5], [2]]}, "run.losses.1: [2] is too short"),
        ({"losses": [[1, "x"]]}, "run.losses.0.1: expected a number"),
        ({"environment": []}, "run.environment: expected object, got []"),
        ({"experiment": "tsd_pc"}, "run.experiment: is tsd_pc, but its name says baseline"),
    ],
)
def test_a_fact_that_is_missing_or_wrong_is_named(recorded, capsys, facts, message):
    change(recorded, **facts)
    assert f"{recorded}: {message}" in refused(capsys)


def test_of_several_files_one_has_to_be_named(recorded, capsys):
    other = recorded.with_name(f"baseline-seed0-{'0' * 12}-{'1' * 12}.json")
    shutil.copy(recorded, other)
    text = refused(capsys)
    assert str(other) in text
    assert f"{recorded}; name one of them with --evidence FILE" in text.replace(f", {other}", "")
    assert main(["reproduce", NAME, "--evidence", str(recorded), "--dry-run"]) == 0
    assert main(["reproduce", NAME, "--evidence", str(recorded.parent / ".."), "--dry-run"]) == 2


def test_a_run_that_is_not_published_is_answered_by_those_that_are(recorded, capsys):
    for name in ("tiny/baselin/seed0", "tiny/baseline/seed1"):
        assert main(["reproduce", name, "--evidence", "published", "--dry-run"]) == 2
        text = capsys.readouterr().err
        assert f"published: no published metrics of {name} (did you mean {NAME}?); there are: {NAME}\n" in text
    assert main(["reproduce", NAME, "--evidence", "nowhere", "--dry-run"]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert main(["reproduce", "tiny/baseline/0", "--dry-run"]) == 2
    assert "expected SUITE/EXPERIMENT/seedK" in capsys.readouterr().err


def test_a_folder_of_one_suites_metrics_will_do(recorded):
    assert main(["reproduce", NAME, "--evidence", "published/tiny", "--dry-run"]) == 0


def test_the_run_that_make_takes_is_published_and_today_s_params_have_its_settings(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    name = re.search(r"^RUN \?= (\S+)$", Path("Makefile").read_text(), re.MULTILINE)[1]
    assert main(["reproduce", name, "--dry-run"]) == 0
    assert "settings   those of this checkout" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_of_several_processes_is_made_anew_too(published):
    """By a command that starts them; one of them then becomes the process that predicts."""
    suite = yaml.safe_load(SUITE.read_text())
    suite["resources"]["processes"] = 2
    SUITE.write_text(yaml.safe_dump(suite))
    done = tsd("reproduce", NAME, "--evidence", "published")
    assert done.returncode == 1, done.stderr  # batch statistics are of half a batch
    assert "tsd.engine.launcher" in done.stderr
    assert "    processes: recorded 1, here 2 (+1)" in done.stdout
    assert "first differ at step 1:" in done.stdout
