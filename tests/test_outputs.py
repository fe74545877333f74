"""What a command may write over, and what not."""

import json

import pytest
import yaml

from tsd.cli import main
from tsd.errors import InputError
from tsd.files import write_text
from tsd.outputs import Writes, check_output

RUN = "results/tiny/runs/baseline/0123456789ab/seed0"


def put(path, text="people made this\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def own(project):
    """A suite on data of one's own, of one picture."""
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    for split in ("train", "val"):
        put(project / f"own/{split}.json", json.dumps(truth))
        put(project / f"own/{split}/a.png", "")
    text = (project / "params/suites/tiny.yaml").read_text()
    before, _, rest = text.partition("\ndata:")
    after = rest.partition("\nrecipe:")[2]
    places = ", ".join(f"{split}: {{annotations: own/{split}.json, images: own/{split}}}" for split in ("train", "val"))
    (project / "params/suites/own.yaml").write_text(f"{before}\ndata: {{format: coco, {places}}}\nrecipe:{after}")
    return project


def refused(capsys, *words):
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


RUN_OPTIONS = ("--suite", "own", "--experiment", "baseline")


@pytest.mark.parametrize(
    "words",
    [
        ("data", "manifest", "--suite", "own", "--output", "own/train.json"),
        ("data", "verify", "--suite", "own", "--output", "own/val.json"),
        ("data", "verify", "--suite", "own", "--output", "own/val/a.png"),
        ("config", *RUN_OPTIONS, "--output", "own/train.json"),
        ("predict", *RUN_OPTIONS, "--output", "own/train.json"),
        ("predict", *RUN_OPTIONS, "--checkpoint", "x.pth", "--output", "x.pth"),
        ("runs", "--metrics", "m.json", "--output", "m.json"),
        ("claims", "--metrics", "m.json", "--output", "m.json"),
        ("claims", "--metrics", "m.csv", "--output", "m.md"),
        ("convert", "x.pth", "x.pth", "--experiment", "baseline"),
        ("evaluate", "coco", "--annotations", "a.json", "--predictions", "p.json", "--output", "a.json"),
        ("evaluate", "coco", "--annotations", "a.json", "--predictions", "p.json", "--output", "link.json"),
        ("evaluate", "draws", "--annotations", "a.json", "--predictions", "p.json", "--output", "p.json"),
        ("sample", "--boxes", "b.csv", "--classes", "c.json", "--output", "c.txt"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_verb_writes_over_what_it_reads(own, capsys, words):
    files = [put(own / name) for name in ("m.json", "m.csv", "x.pth", "a.json", "p.json", "b.csv", "c.json")]
    (own / "link.json").symlink_to("a.json")
    before = {path: path.read_bytes() for path in [*files, *(own / "own").rglob("*.*")]}
    assert "expected another place to write" in refused(capsys, *words)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["params/reported.csv", "params/suites/new.yaml", "data.dvc", "Snakefile", "tsd/x.py"])
def test_no_verb_writes_over_the_projects_sources(project, capsys, name):
    before = (project / name).read_bytes() if (project / name).exists() else None
    for words in (("data", "manifest"), ("claims",), ("tables",), ("config", "--experiment", "baseline")):
        said = refused(capsys, *words, "--suite", "tiny", "--output", name)
        assert f"{name}: is in {name.split('/')[0]} of the project" in said
    assert ((project / name).read_bytes() if (project / name).exists() else None) == before


OTHERS = [
    *("docs/own-data.md", "benchmarks/RESULTS.md", "benchmarks/evidence/tiny/a.json", "LICENSE", ".dvc/config"),
    *("mlflow.db", "mlruns/0/a.json", "data/mine/train.json", "data/tiny/pictures.tar", ".gitignore"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_no_verb_writes_over_pages_evidence_data_or_mlflows_store(project, capsys, name):
    path = put(project / name)
    for words in (("runs",), ("report",), ("data", "manifest")):
        assert "not to be written over" in refused(capsys, *words, "--suite", "tiny", "--output", name)
    assert path.read_text() == "people made this\n"


def test_the_page_of_results_is_its_verbs_to_write(project, capsys):
    from tsd.cli import EVIDENCE

    put(project / "docs/results.md", "old")
    assert "no such folder" in refused(capsys, "results", "--output", "docs/results.md")  # and not the page
    assert "not to be written over" in refused(capsys, "results", "--output", "docs/voc.md", "--evidence", EVIDENCE)


def test_a_file_beside_the_output_is_replaced_only_if_the_verb_wrote_it(project, capsys):
    notes = put(project / "notes.csv")
    assert "notes.csv: would be replaced" in refused(capsys, "claims", "--suite", "tiny", "--output", "notes.md")
    assert notes.read_text() == "people made this\n"
    for _ in range(2):
        assert main(["claims", "--suite", "tiny", "--output", "verdicts.md"]) == 0


def test_what_is_written_beside_the_output_counts_too(project, capsys):
    said = refused(capsys, "claims", "--suite", "tiny", "--output", "params/../params/reported.md")
    assert "reported.md: is in params" in said


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("config", "--experiment", "baseline", "--suite", "tiny"), "checkpoint.pth"),
        (("data", "manifest", "--suite", "tiny"), "experiment.yaml"),
        (("predict", "--experiment", "baseline", "--suite", "tiny"), "eval/0123456789ab/metrics.json"),
        (("evaluate", "coco", "--annotations", "a", "--predictions", "p"), "eval/0123456789ab/predictions.json"),
        (("evaluate", "coco", "--annotations", "a", "--predictions", "p"), "eval/0123456789ab/metrics.json"),
        (
            ("evaluate", "coco", "--annotations", "a", "--predictions", "p", "--run-folder", RUN.replace("0", "1")),
            "eval/0123456789ab/metrics.json",
        ),
    ],
)
def test_a_file_of_a_run_is_replaced_by_its_own_verb_only(project, capsys, words, name):
    path = put(project / RUN / name)
    assert "is a file of the run seed0 in " in refused(capsys, *words, "--output", f"{RUN}/{name}")
    assert path.read_text() == "people made this\n"


def test_other_predictions_dont_take_the_proposals_of_a_runs_own(project, capsys):
    put(project / RUN / "eval/0123456789ab/proposals.npz")
    words = ("predict", "--suite", "tiny", "--experiment", "baseline", "--limit", "2")
    assert "proposals.npz: is a file of the run" in refused(
        capsys, *words, "--output", f"{RUN}/eval/0123456789ab/few.json"
    )


@pytest.mark.parametrize("name", ["a.json", "a.draws.csv"])
def test_published_metrics_are_replaced_by_no_verb(project, capsys, name):
    path = put(project / f"results/tiny/metrics/{name}")
    assert "is published metrics" in refused(capsys, "runs", "--suite", "tiny", "--output", path)


def test_the_verbs_of_a_run_may_replace_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / RUN
    for name, run_folder in (("predictions.json", None), ("metrics.json", folder), ("draws.csv", None)):
        path = put(folder / "eval/0123456789ab" / name)
        check_output(path, Writes(own=(name,), with_run_folder=name == "metrics.json"), (), run_folder)


def test_metrics_of_a_run_are_of_its_own_predictions(project, capsys):
    predictions = put(project / "found.json", "[]")
    words = ("evaluate", "coco", "--annotations", "a", "--predictions", predictions, "--output", "m.json")
    assert "not in results" in refused(capsys, *words, "--run-folder", RUN)


def test_metrics_of_a_run_are_judged_by_its_suites_annotations(project, capsys):
    from tsd.engine.identity import data_digest
    from tsd.engine.params import get_run, load_suite

    suite = load_suite("tiny")
    run = get_run(suite, "baseline", 0, data_digest(suite))
    put(run.folder / "experiment.yaml", yaml.safe_dump(run.describe()))
    predictions = put(run.predictions, "[]")
    put(project / "corrected.json", "{}")
    words = ("evaluate", "coco", "--predictions", predictions, "--output", run.eval_folder / "metrics.json")
    said = refused(capsys, *words, "--annotations", "corrected.json", "--run-folder", run.folder)
    assert f"corrected.json: not what {run.folder} is judged by; expected {suite.split('val')[0]}" in said


def test_a_few_predictions_are_not_the_runs_own(project, capsys):
    from tsd.engine.identity import data_digest
    from tsd.engine.params import get_run, load_suite

    suite = load_suite("tiny")
    output = get_run(suite, "baseline", 0, data_digest(suite)).predictions
    words = ("predict", "--suite", "tiny", "--experiment", "baseline", "--output", output)
    for more in (("--limit", "2"), ("--checkpoint", "other.pth")):
        assert "the run's own predictions" in refused(capsys, *words, *more)


def test_a_table_writes_nothing_beside_its_folder(project):
    mine = [put(project / f"mine/{name}") for name in ("metrics.json", "training.csv")]
    assert main(["tables", "--suite", "tiny", "--output", "mine/tables"]) == 0
    assert [path.read_text() for path in mine] == ["people made this\n"] * 2
    assert (project / "mine/tables/metrics.json").exists()


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null"):
        with pytest.raises(InputError, match="is a device or a pipe"):
            write_text(path, "text")
    assert pipe.is_fifo()
