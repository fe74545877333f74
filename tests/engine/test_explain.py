"""From a cell to the data, and from an edit to the runs."""

import hashlib
import json

import pytest

from tests.conftest import tsd
from tests.tracking.test_follow import server, silent
from tests.workflow.test_pipeline import edit
from tsd.cli import main
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, lineage, load_suite

COMMIT = "c" * 40


@pytest.fixture
def evaluated(project):
    """A project whose suite `tiny` has the metrics and predictions of one run, and the run."""
    suite = load_suite("tiny")
    run = get_run(suite, "tsd_pc", 0, data_digest(suite))
    run.predictions.parent.mkdir(parents=True)
    run.predictions.write_text("[]")
    facts = {
        "suite": "tiny",
        "experiment": "tsd_pc",
        "seed": 0,
        "digest": run.digest,
        "test_digest": run.test_digest,
        "data_digest": run.data_digest,
        "git_commit": COMMIT,
        "git_dirty": True,
        "predictions_sha256": hashlib.sha256(b"[]").hexdigest(),
    }
    run.metrics_file.parent.mkdir(parents=True)
    run.metrics_file.write_text(json.dumps({"run": facts, "metrics": {"AP": 0.25, "AP50": 0.5, "AP75": None}}))
    return run


@pytest.mark.parametrize(("table", "row"), [("Table 3", "tsd_pc"), ("table3", "tsd_pc"), ("TABLE  3", None)])
def test_the_chain_from_a_cell_to_the_data(evaluated, table, row):
    done = tsd("explain", "--suite", "tiny", table, *([row] if row else []))
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "  AP: 25.0; the paper: 41.0 (params/reported.csv, table3/tsd_pc)" in text
    assert "  AP.75: no objects; the paper: 44.3" in text
    assert f"run tiny/tsd_pc/{evaluated.digest}/seed0: evaluated" in text
    assert f"{evaluated.metrics_file}\n" in text
    assert f"{evaluated.predictions}, the file that the metrics are of" in text
    assert "checkpoint.pth (not here)" in text
    assert f"git commit {COMMIT} with uncommitted changes" in text
    assert "no run; `tsd mlflow sync` makes it" in text
    assert f"data digest {evaluated.data_digest}" in text
    assert "data/tiny/manifest.json (not here)" in text
    assert ("row tsd_joint" in text) is (row is None)


def test_a_cell_that_the_paper_does_not_have_is_explained_too(evaluated):
    done = tsd("explain", "--suite", "tiny", "changes", "tsd_pc")
    assert done.returncode == 0, done.stderr
    assert "  AP: 25.0\n" in done.stdout
    assert "the paper:" not in done.stdout


def test_predictions_that_were_changed_are_named(evaluated):
    evaluated.predictions.write_text("[ ]")
    assert "CHANGED since the metrics were taken" in tsd("explain", "--suite", "tiny", "table3", "tsd_pc").stdout


def test_a_server_that_is_down_is_said(evaluated, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    done = tsd("explain", "--suite", "tiny", "table3", "tsd_pc")
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:1 can't be asked" in done.stdout


def test_a_server_that_does_not_answer_is_said(evaluated, monkeypatch, capsys):
    monkeypatch.setattr("tsd.engine.explain.PATIENCE", 1.0)
    with server(silent) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["explain", "--suite", "tiny", "table3", "tsd_pc"]) == 0
    assert f"{uri} can't be asked (no answer within 1 s)" in capsys.readouterr().out


def test_a_quoted_row_has_no_run(project):
    text = tsd("explain", "--suite", "tiny", "table8").stdout
    assert "quoted; the paper:" in text
    assert "another paper's method: no run" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Table 33"], "no table 'Table 33' in params/tables.yaml; there are: ablation, changes, table1"),
        (["table3", "nobody"], "table3: no row 'nobody'; there are: tsd_joint, tsd_pc_cls"),
        (["--set", "head.margin_cls"], "--set head.margin_cls: expected KEY=VALUE"),
        (["--set", "head.margin_cls=["], "--set head.margin_cls=[: "),
        (["--set", "head=1", "--set", "head.pc_cls=1"], "head has got a value already"),
        (["--set", "head.margin=0.3"], "head.margin: unknown key"),
        (["--set", "head.margin_cls=0.3", "--experiment", "tsd_cp"], "no experiment 'tsd_cp' (did you mean 'tsd_pc'?)"),
        (["--set", "head.margin_cls=0.3"], "baseline: head.margin_cls: only a head of type tsd has it"),
    ],
)
def test_bad_input_is_named(project, capsys, words, message):
    assert main(["explain", "--suite", "tiny", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "experiment", "trained", "predicted"),
    [
        ("head.margin_cls=0.3", "tsd_pc", {"tsd_pc"}, set()),
        ("test.proposals=40", "baseline", set(), {"baseline", "tsd_pc"}),  # below, the suite's override is taken away
        ("title=x", "tsd_pc", set(), set()),
        ("schedule.epochs=3", "tsd_pc", set(), set()),  # the suite's own comes after
    ],
)
def test_what_an_edit_makes_anew_is_what_the_edited_params_say(project, capsys, change, experiment, trained, predicted):
    def edited(suite):
        del suite["override"]["test"]

    edit(project / "params/suites/tiny.yaml", edited)
    names = sorted({experiment} | predicted)
    words = [word for name in names for word in ("--experiment", name)]
    assert main(["explain", "--suite", "tiny", "--set", change, *words]) == 0
    text = capsys.readouterr().out
    before = load_suite("tiny")
    key, value = change.split("=")
    place = key.split(".")

    def lay(book):
        for name in names:
            entry = book["experiments"][name]
            for part in place[:-1]:
                entry = entry.setdefault(part, {})
            entry[place[-1]] = value if place[-1] == "title" else float(value) if "." in value else int(value)

    edit(project / "params/experiments.yaml", lay)
    after = load_suite("tiny")
    for name in before.experiments:
        old, new = (get_run(suite, name, 0, data_digest(suite)) for suite in (before, after))
        assert (old.digest != new.digest) is (name in trained)
        assert (old.test_digest != new.test_digest) is (name in predicted)
        assert (f"{old.key}: trained anew, as digest {new.digest}" in text) is (name in trained)
        line = f"{old.key}: predicted and evaluated anew, as test digest {new.test_digest}"
        assert (line in text) is (name in predicted)
    assert f": {len(trained | predicted)} of 2 runs are made anew" in text


def test_lineage(root):
    assert lineage("tsd_pc_cls_m03", root)[:2] == ["tsd_pc_cls_m03", "tsd_pc_cls"]
