"""Metrics files go where they belong: by their names, their contents, their suite and their data."""

import json

import pytest

from tests.conftest import ROOT
from tsd.cli import main
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite
from tsd.engine.published import check_suite, read_metrics
from tsd.errors import InputError

RUN = {
    "suite": "tiny",
    "experiment": "baseline",
    "seed": 0,
    "digest": "a" * 12,
    "test_digest": "b" * 12,
    "data_digest": "c" * 12,
    "predictions_sha256": "0f" * 32,
    "git_commit": "1" * 40,
    "git_dirty": False,
}


def put(folder, name=None, metrics=None, scale_iou=None, **facts):
    run = RUN | facts
    path = folder / (name or "{experiment}-seed{seed}-{digest}-{test_digest}.json".format(**run))
    content = {"run": run, "metrics": {"AP": 0.4} if metrics is None else metrics}
    path.write_text(json.dumps(content | ({"scale_iou": scale_iou} if scale_iou else {})))
    return path


def test_what_is_published_is_read(tmp_path):
    files = [put(tmp_path), put(tmp_path, seed=1), put(tmp_path, "metrics.json", experiment="tsd")]
    assert [str(one.key) for one in check_suite("tiny", files)] == [
        "tiny/baseline/seed0",
        "tiny/baseline/seed1",
        "tiny/tsd/seed0",
    ]
    for path in sorted((ROOT / "benchmarks/evidence").glob("*/*.json")):
        assert read_metrics(path).facts["suite"] == path.parent.name


@pytest.mark.parametrize(
    ("key", "value"), [("experiment", "tsd"), ("seed", 1), ("digest", "d" * 12), ("test_digest", "d" * 12)]
)
def test_metrics_of_another_run_than_the_name_says(tmp_path, key, value):
    path = put(tmp_path, "baseline-seed0-aaaaaaaaaaaa-bbbbbbbbbbbb.json", **{key: value})
    with pytest.raises(InputError, match=rf"bbb\.json: run\.{key}: is {value}, but its name says"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"metrics": {"AP": 5.0}}, "metrics.AP"),
        ({"metrics": {"APs": -3}}, "metrics.APs"),
        ({"metrics": {"AP50_val_released": 1.01}}, "metrics.AP50_val_released"),
        ({"metrics": {"AR100": -0.1}}, "metrics.AR100"),
        ({"metrics": {"agreement": 2}}, "metrics.agreement"),
        ({"scale_iou": {"all": {"0.5": 40.0}}}, r"scale_iou\.all\.AP at 0\.5"),
        ({"history": [{"epoch": 1, "AP": 40.0}]}, "run.history.AP"),
    ],
)
def test_a_figure_that_no_metric_gives(tmp_path, content, key):
    with pytest.raises(InputError, match=rf"\.json: {key}: expected a fraction from"):
        read_metrics(put(tmp_path, **content))


def test_figures_without_objects_are_null(tmp_path):
    assert read_metrics(put(tmp_path, metrics={"APl": None, "AP": 0, "AR1": 1})).path.exists()


def test_metrics_of_another_suite_or_other_data(tmp_path):
    with pytest.raises(InputError, match=r"\.json: of suite demo; expected tiny"):
        check_suite("tiny", [put(tmp_path, suite="demo")])
    files = [put(tmp_path), put(tmp_path, seed=1, data_digest="e" * 12)]
    with pytest.raises(InputError, match=r"seed1.*run\.data_digest: is eeeeeeeeeeee; expected cccccccccccc, that of"):
        check_suite("tiny", files)
    with pytest.raises(InputError, match=r"seed0.*expected dddddddddddd, the suite's"):
        check_suite("tiny", files[:1], "d" * 12)


def test_a_run_does_not_count_twice(tmp_path):
    with pytest.raises(InputError, match=r"the same run as .*it would count twice"):
        check_suite("tiny", [put(tmp_path), put(tmp_path, "metrics.json")])


@pytest.mark.parametrize("verb", ["tables", "figures", "runs", "claims"])
def test_no_verb_shows_a_run_under_another_name(project, capsys, verb):
    suite = load_suite("tiny")
    run = get_run(suite, "baseline", 0, data_digest(suite))
    run.metrics_file.parent.mkdir(parents=True)
    facts = {key: value for key, value in run.describe().items() if key in RUN}
    path = put(run.metrics_file.parent, run.metrics_file.name, **(facts | {"experiment": "tsd_pc"}))
    output = "out/claims.md" if verb == "claims" else "out"
    assert main([verb, "--suite", "tiny", "--output", output]) == 2
    assert f"{run.metrics_file}: run.experiment: is tsd_pc, but its name says baseline" in capsys.readouterr().err
    put(path.parent, path.name, **facts)
    assert main([verb, "--suite", "evidence-tail", "--metrics", str(path), "--output", output]) == 2
    assert "of suite tiny; expected evidence-tail" in capsys.readouterr().err
