"""Damaged files of a run and of what was made of runs: each reader names the file, and the key or line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import project_with_scenes
from tests.report.test_tables import RUN
from tests.tracking.test_mirror import make_run
from tsd.cli import main
from tsd.engine import run_files
from tsd.errors import InputError
from tsd.evaluation.draws import COLUMNS as DRAWN
from tsd.evaluation.draws import SUFFIX, draws_beside, write_draws
from tsd.report import tables


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "experiment.yaml: expected object, got null"),
        (lambda text: text + "a: [", "experiment.yaml: line "),
        (
            lambda text: text.replace("seed: 0", "seed: zero"),
            'experiment.yaml: seed: expected an integer from 0, got "zero"',
        ),
        (lambda text: text.replace("digest: ", "digestt: ", 1), "experiment.yaml: data_digest: missing key"),
        (lambda text: text.replace("table3/tsd_pc", "table3"), "tables.0: expected a row of a table, as table/row"),
    ],
)
def test_a_damaged_description_is_named(folder, change, message):
    path = folder / "experiment.yaml"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as error:
        run_files.read_experiment(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "environment.json: not valid JSON: line 1 column 1"),
        ("[]", "environment.json: expected object, got []"),
        ("{}", "environment.json: git_commit: missing key"),
        ('{"git_commit": 3, "git_dirty": null}', "git_commit: expected string or null, got 3"),
        ('{"git_commit": null, "git_dirty": null, "processes": 0}', "processes: expected a positive integer, got 0"),
    ],
)
def test_a_damaged_environment_is_named(folder, text, message):
    (folder / "environment.json").write_text(text)
    with pytest.raises(InputError) as error:
        run_files.read_environment(folder)
    assert message in str(error.value)


def line(**changes):
    return json.dumps({"time": 1.0, "step": 3, "epoch": 1, "loss": 0.5} | changes).encode() + b"\n"


@pytest.mark.parametrize(
    "damaged", [b"\n", b"\x00\x00\n", b'{"time": 1.0, "st\n', b"\xff\n", b"[]\n", line(step=None), line(loss="low")]
)
def test_a_damaged_line_in_the_middle_of_a_log_is_named(folder, damaged):
    (folder / "log.jsonl").write_bytes(line() + damaged + line(step=4))
    with pytest.raises(InputError, match=r"log.jsonl, line 2: expected a step and a time"):
        run_files.read_log(folder)


def test_an_evaluation_without_its_epoch_is_named(folder):
    (folder / "log.jsonl").write_text('{"time": 1.0, "step": 3, "val/AP": 0.1}\n')
    with pytest.raises(InputError, match=r"log.jsonl, line 1: epoch: missing key"):
        run_files.read_log(folder)


def test_a_line_that_is_being_written_is_left_for_later(folder):
    (folder / "log.jsonl").write_bytes(line() + b'{"time": 1.0, "st')
    assert [entry["step"] for entry in run_files.read_log(folder)] == [3]
    (folder / "log.jsonl").unlink()
    assert run_files.read_log(folder) == []


WHOLE = {"image_id": np.array([1, 1]), "category_id": np.array([1, 2]), "bbox": np.zeros((2, 4)), "score": np.zeros(2)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"score": None}, "score: missing array; make it anew by `tsd predict`"),
        ({"score": np.zeros(3)}, r"score: expected the shape \(2, …\), got \(3,\)"),
        ({"bbox": np.zeros((2, 5))}, r"bbox: expected the shape \(2, 4\), got \(2, 5\)"),
        ({"proposal": np.zeros((1, 4))}, r"proposal: expected the shape \(2, …\), got \(1, 4\)"),
    ],
)
def test_damaged_arrays_are_named(tmp_path, arrays, message):
    path = tmp_path / "proposals.npz"
    np.savez(path, **{name: array for name, array in (WHOLE | arrays).items() if array is not None})
    with pytest.raises(InputError, match=rf"proposals.npz: {message}"):
        run_files.read_proposals(path)


def test_a_cut_file_of_arrays_is_named(tmp_path):
    path = tmp_path / "proposals.npz"
    with pytest.raises(InputError, match=r"proposals.npz: no such file"):
        run_files.read_proposals(path)
    np.savez(path, **WHOLE)
    whole = path.read_bytes()
    assert set(run_files.read_proposals(path)) == set(WHOLE)
    for content in (b"", b"text", whole[:100], whole[:-10], whole[:200] + b"x" * 50 + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"proposals.npz: not readable: .*; make it anew by `tsd predict`"):
            run_files.read_proposals(path)


def test_the_times_of_predictions_are_checked(tmp_path):
    path = tmp_path / "runtime.json"
    path.write_text('{"median_ms": "fast", "device": "cpu"}')
    with pytest.raises(InputError, match=r'runtime.json: median_ms: expected number or null, got "fast"'):
        run_files.read_runtime(path)


REPORTED = {
    "figures/figures.json": b'{"figure6": "drawn"}',
    "tables/tables.html": b"<html><body>tables</body></html>",
}
"""What a report is made of, beside the verdicts."""


@pytest.fixture
def results(tmp_path, monkeypatch):
    project_with_scenes(tmp_path / "project", monkeypatch)
    folder = Path("results/tiny")
    for name, content in REPORTED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert main(["claims", "--suite", "tiny", "--output", f"{folder}/claims.md"]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("figures/figures.json", b"[]", "expected a text for each figure; make it anew by `tsd figures`"),
        ("figures/figures.json", b"", "not valid JSON"),
        ("claims.csv", b"", "not what the suite's metrics and draws give now"),
        ("claims.csv", b"a,b\n1,2\n", "not what the suite's metrics and draws give now"),
        ("claims.csv", b"\xff", "not what the suite's metrics and draws give now"),
        ("tables/tables.html", b"<html><body>tab", "no whole page of tables; make it anew by `tsd tables`"),
        ("tables/tables.html", b"\xff", "no whole page of tables"),
    ],
)
def test_what_a_report_is_made_of_is_named_if_it_is_damaged(results, capsys, name, content, message):
    (results / name).write_bytes(content)
    assert main(["report", "--suite", "tiny", "--output", "report.html"]) == 2
    assert capsys.readouterr().err.startswith(f"results/tiny/{name}: {message}")
    assert not Path("report.html").exists()


def test_an_edited_verdict_is_not_reported(results, capsys):
    path = results / "claims.csv"
    path.write_text(path.read_text().replace("not run", "supported", 1))
    assert main(["report", "--suite", "tiny", "--output", "report.html"]) == 2
    assert "claims.csv: not what the suite's metrics and draws give now" in capsys.readouterr().err
    assert main(["claims", "--suite", "tiny", "--output", f"{results}/claims.md"]) == 0
    assert main(["report", "--suite", "tiny", "--output", "report.html"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "models: expected what `tsd inspect` writes; make it anew"),
        ('{"models": {"baseline": {"params_m": 1}}}', "models.baseline.gmacs: expected a number above 0, got None"),
        (
            '{"models": {"baseline": {"params_m": "1", "gmacs": 1}}}',
            "models.baseline.params_m: expected a number above",
        ),
    ],
)
def test_damaged_counts_of_networks_are_named(tmp_path, content, message):
    (tmp_path / "models.json").write_text(content)
    with pytest.raises(InputError) as error:
        tables.read_models(tmp_path / "models.json")
    assert message in str(error.value)


def test_draws_beside_damaged_metrics_are_not_compared(tmp_path):
    path = tmp_path / "metrics.json"
    write_draws(pd.DataFrame(np.zeros((2, len(DRAWN))), columns=DRAWN), path.with_suffix(SUFFIX))
    for content in ("[]", "{}", '{"metrics": 3}', '{"metrics": {"AP": "high"}}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"metrics.json: not the metrics of a run: metrics.AP: expected a number"):
            draws_beside(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": None}, "not the metrics of a run: metrics: expected an object, got None"),
        ({"metrics": {"AP": "high"}}, "metrics.AP: expected a finite number or null, got 'high'"),
        ({"scale_iou": []}, "not the metrics of a run: scale_iou: expected an object"),
        ({"scale_iou": {"all": {"0.50": True}}}, "scale_iou.all.0.50: expected a finite number or null, got True"),
        ({"run": RUN | {"runtime": {"median_ms": 1}}}, "run.runtime.device: expected a text"),
    ],
)
def test_damaged_metrics_are_named(tmp_path, change, message):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"run": RUN, "metrics": {"AP": 0.1}} | change))
    with pytest.raises(InputError) as error:
        tables.read_metrics(path)
    assert message in str(error.value)
