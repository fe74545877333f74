"""Claims of the paper: what the file says, verdicts, and the page of real predictions."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, tsd
from tests.evaluation.test_bootstrap import scenes
from tests.workflow.test_pipeline import edit
from tsd.engine.identity import data_digest
from tsd.engine.params import get_runs, load_suite
from tsd.errors import ParamsError
from tsd.evaluation.bootstrap import average_precision, match
from tsd.evaluation.coco import evaluate_coco
from tsd.evaluation.draws import draw_figures, write_draws
from tsd.report.claims import Claim, Judgement, format_claims, load_claims, paper_difference
from tsd.report.tables import load_reported

CLAIM = Claim("a", "A | is better", "Table 9", "one", "two", "AP")


def test_every_claim_names_experiments_and_printed_rows():
    experiments = list(yaml.safe_load((ROOT / "params/experiments.yaml").read_text())["experiments"])
    claims = load_claims(ROOT / "params", experiments)
    reported = load_reported(ROOT / "params")
    assert len({claim.id for claim in claims}) == len(claims) >= 15
    differences = {claim.id: paper_difference(claim, reported) for claim in claims}
    assert differences["joint_training_helps"] == pytest.approx(0.015)  # Table 2: 39.7 and 38.2
    assert differences["gain_grows_with_iou"] is None
    assert differences["tsd_raises_agreement"] is None
    printed = [value for value in differences.values() if value is not None]
    assert all(value > 0 for value in printed)  # the paper's own figures bear out what it says


def params_with(folder: Path, claims: str) -> Path:
    """A folder of params with these claims, beside the schemas."""
    (folder / "workflow").symlink_to(ROOT / "workflow")
    (folder / "params").mkdir()
    (folder / "params/claims.yaml").write_text(claims)
    return folder / "params"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figure": "AP51"}, r"claims\.a\.figure: expected AP, AP50"),
        ({"more": "nobody"}, r"claims\.a\.more: no experiment 'nobody'"),
        ({"more": "two"}, r"claims\.a: more and less are both 'two'"),
        ({"more": "tow"}, r"claims\.a\.more: no experiment 'tow' in .*experiments.yaml \(did you mean 'two'\?\)"),
        ({"report": ["t/a", "t/b"]}, r"claims\.a\.report: unknown key \(did you mean 'reported'\?\)"),
        ({"reported": ["table1/tsd"]}, r"claims\.a\.reported: expected \[row of `more`, row of `less`\]"),
        ({"text": None}, r"claims\.a\.text: expected string, got null"),
    ],
)
def test_a_broken_claim_is_named(tmp_path, change, message):
    good = {"text": "t", "source": "s", "more": "one", "less": "two", "figure": "AP", "otherwise": "o"}
    params = params_with(tmp_path, yaml.safe_dump({"claims": {"a": good | change}}))
    with pytest.raises(ParamsError, match=message):
        load_claims(params, ["one", "two"])


@pytest.mark.parametrize("text", ["", "- a", "claims: 1", "claims: [a", "claims: {a: 1}"])
def test_a_broken_file_is_named(tmp_path, text):
    params = params_with(tmp_path, text)
    with pytest.raises(ParamsError, match=r"claims\.yaml"):
        load_claims(params)


def test_a_row_that_the_paper_does_not_print_is_named():
    claim = Claim("a", "t", "s", "one", "two", "AP", ("table1/nobody", "table1/tsd"))
    with pytest.raises(ParamsError, match=r"claims\.a\.reported: no AP of table1/nobody in reported\.csv"):
        paper_difference(claim, load_reported(ROOT / "params"))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.02, "supported"),
        (-0.02, -0.01, "contradicted"),
        (-0.01, 0.01, "not resolved"),
        (0.0, 0.01, "not resolved"),
        (None, None, "not run"),
        (float("nan"), float("nan"), "no objects"),
    ],
)
def test_verdicts(low, high, verdict):
    judged = Judgement(CLAIM, 0.01, None if low is None else (low + high) / 2, low, high, (0,))
    assert judged.verdict == verdict
    line = format_claims([judged], "Title", ["note"]).splitlines()[4]
    assert line.startswith("| A \\| is better (`one` − `two`) | Table 9 | AP | +1.0 |")
    assert line.endswith(f"| {verdict} |")


def read(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def published(run, truth, found, trained, draws=50):
    """What is kept of a run: its metrics and the figures of its draws."""
    facts = {"suite": "tiny", "experiment": run.experiment, "seed": run.seed, "digest": run.digest}
    facts |= {"test_digest": run.test_digest, "data_digest": run.data_digest, "predictions_sha256": "0f" * 32}
    facts |= {"git_commit": "c" * 40, "git_dirty": True}
    metrics = evaluate_coco(truth, found, backend="pycocotools")["metrics"]
    run.metrics_file.parent.mkdir(parents=True, exist_ok=True)
    run.metrics_file.write_text(json.dumps({"run": facts, "metrics": metrics}))
    write_draws(draw_figures(truth, found, trained, draws), run.draws_file)


@pytest.fixture
def judged(project):
    """Two seeds of the baseline and of TSD; TSD's boxes are exact, the baseline's are off."""
    truth, found = scenes(1)
    edit(
        project / "params/suites/tiny.yaml",
        lambda suite: suite.update(
            seeds=[0, 1, 2], experiments=["baseline", "tsd", "tsd_joint", "baseline_class_aware"]
        ),
    )
    suite = load_suite("tiny")
    annotations = suite.split("val")[0]
    annotations.parent.mkdir(parents=True)
    annotations.write_text(json.dumps(truth))
    rare = [entry for entry in truth["annotations"] if entry["category_id"] == 2][:1]
    often = [entry for entry in truth["annotations"] if entry["category_id"] != 2]
    trained = truth | {"annotations": rare + often}
    suite.split("train")[0].write_text(json.dumps(trained))
    exact = [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": entry["bbox"], "score": 0.9}
        for entry in truth["annotations"]
        if not entry["iscrowd"]
    ]
    own = [entry for entry in found if entry["category_id"] != 2]
    own += [entry for entry in exact if entry["category_id"] == 2]
    given = {"baseline": found, "tsd": exact, "tsd_joint": exact, "baseline_class_aware": own}
    runs = get_runs(suite, data_digest(suite))
    for run in runs:
        if run.experiment in given and (run.seed < 2 or run.experiment == "baseline"):
            published(run, truth, given[run.experiment], trained)
    return truth, found, {(run.experiment, run.seed): run for run in runs}


def test_a_suite_is_judged_by_its_draws(judged):
    truth, found, _ = judged
    done = tsd("claims", "--suite", "tiny", "--output", "out/claims.md")
    assert done.returncode == 0, done.stderr
    assert Path("out/claims.md").read_text() in done.stdout
    lines = {line["claim"]: line for line in read("out/claims.csv")}
    better = lines["tsd_over_sibling"]
    expected = 1 - evaluate_coco(truth, found, backend="pycocotools")["metrics"]["AP"]
    assert float(better["difference"]) == pytest.approx(expected, abs=2e-5)
    assert (better["verdict"], better["seeds"]) == ("supported", "0 1")
    same = lines["joint_training_helps"]
    assert (same["verdict"], float(same["difference"]), same["paper"]) == ("not resolved", 0, "0.015")
    tail = lines["class_aware_helps_tail"]
    of_class = average_precision(match(truth, found))[1].mean()  # of three classes, one is the tail: the second
    assert float(tail["difference"]) == pytest.approx(1 - of_class, abs=2e-5)
    assert (tail["verdict"], tail["figure"]) == ("supported", "AP_tail")
    assert "Tail: the half of the classes that are in the fewest training pictures." in done.stdout
    assert lines["pc_helps"]["verdict"] == "not run"
    assert lines["pc_helps"]["difference"] == ""
    assert "Some rows were made with uncommitted changes." in done.stdout
    assert "50 draws" in done.stdout

    done = tsd("claims", "--suite", "tiny", "--output", "out/claims.csv")
    assert done.returncode == 2
    assert "expected a name like claims.md" in done.stderr


def test_published_files_give_the_same_page_without_the_data(judged):
    assert tsd("claims", "--suite", "tiny", "--output", "here.md").returncode == 0
    Path("results/tiny/metrics").rename("kept")
    shutil.rmtree("data")
    files = sorted(map(str, Path("kept").glob("*.json")))
    done = tsd("claims", "--suite", "tiny", "--output", "there.md", "--metrics", *files)
    assert done.returncode == 0, done.stderr
    assert Path("there.md").read_text() == Path("here.md").read_text()


def test_settings_that_changed_since_are_told(judged):
    edit(Path("params/experiments.yaml"), lambda book: book["experiments"]["tsd"]["head"].update(margin_cls=0.11))
    files = sorted(map(str, Path("results/tiny/metrics").glob("*.json")))
    done = tsd("claims", "--suite", "tiny", "--output", "claims.md", "--metrics", *files)
    assert done.returncode == 0, done.stderr
    assert "Made with other settings than those of today's params: tsd." in done.stdout


def change(path, **facts):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"run": content["run"] | facts}))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"suite": "other"}, "of suite other; expected tiny"),
        ({"seed": 0}, "run.seed: is 0, but its name says 1"),
        ({"data_digest": "0" * 12}, f"run.data_digest: is {'0' * 12}; expected "),
    ],
)
def test_files_that_do_not_belong_together_are_named(judged, facts, message):
    *_, runs = judged
    odd = runs["tsd", 1].metrics_file
    change(odd, **facts)
    done = tsd("claims", "--suite", "tiny", "--output", "claims.md")
    assert done.returncode == 2
    assert f"{odd}: {message}" in done.stderr
    assert not Path("claims.md").exists()


def test_draws_of_other_predictions_or_another_number_are_refused(judged):
    *_, runs = judged
    draws = runs["tsd", 1].draws_file
    kept = draws.read_text()
    draws.write_text(runs["baseline", 1].draws_file.read_text())
    done = tsd("claims", "--suite", "tiny", "--output", "claims.md")
    assert done.returncode == 2
    assert f"{draws}: AP " in done.stderr
    assert "of different predictions or annotations" in done.stderr
    draws.write_text("".join(kept.splitlines(keepends=True)[:20]))
    done = tsd("claims", "--suite", "tiny", "--output", "claims.md")
    assert done.returncode == 2
    assert f"{draws}: 18 draws" in done.stderr
    for damaged in (kept[:-3], kept[:-20], kept.replace("\n", "\n9", 2)):
        draws.write_text(damaged)
        done = tsd("claims", "--suite", "tiny", "--output", "claims.md")
        assert done.returncode == 2
        assert f"{draws}: " in done.stderr
    for path in Path("results/tiny/metrics").glob("*.draws.csv"):
        whole = kept if path == draws else path.read_text()
        path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    done = tsd("claims", "--suite", "tiny", "--output", "claims.md")
    assert done.returncode == 2
    assert "1 draws; an interval of 95 % takes 40 at least" in done.stderr


def test_metrics_without_draws_are_counted_and_must_be_metrics_of_the_suite(judged, tmp_path):
    *_, runs = judged
    runs["tsd", 1].draws_file.unlink()
    done = tsd("claims", "--suite", "tiny", "--output", "claims.md")
    assert done.returncode == 0, done.stderr
    assert "Not judged: 1 runs whose metrics are here without their draws" in done.stdout
    other = tmp_path / "other.json"
    for content in ('{"a":', "{}", runs["tsd", 1].metrics_file.read_text().replace('"tiny"', '"demo"')):
        other.write_text(content)
        done = tsd("claims", "--suite", "tiny", "--metrics", other, "--output", "other.md")
        assert done.returncode == 2, content
        assert str(other) in done.stderr
    assert tsd("claims", "--suite", "tiny", "--metrics", "nothere.json", "--output", "other.md").returncode == 2
    assert not Path("other.md").exists()


def test_without_runs_every_claim_says_so(project):
    done = tsd("claims", "--suite", "tiny", "--output", "claims.md")
    assert done.returncode == 0, done.stderr
    assert {line["verdict"] for line in read("claims.csv")} == {"not run"}


def test_open_images_has_no_claims(project):
    done = tsd("claims", "--suite", "openimages-demo", "--output", "claims.md")
    assert done.returncode == 2
    assert "Open Images' metric" in done.stderr
    assert not Path("claims.md").exists()
