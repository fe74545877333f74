"""From VOC's archive to a table in one call of Snakemake: the suite evidence-voc in short, with its own network.

The pictures are published ones where TSD_VOC_SAMPLE is set, and generated ones elsewhere.
"""

import json

import pandas as pd
import pytest

from tests.conftest import copy_project
from tests.voc_kit import TEST, drawn, expect, photographs, write_archive
from tests.workflow.test_pipeline import edit, run, snakemake
from tsd.data.serve import served

SUITE = "evidence-voc"
EXPERIMENTS = ["baseline", "tsd"]


def short(content):
    content |= {"experiments": EXPERIMENTS, "seeds": [0], "tables": ["voc", "ablation"], "evaluate": ["voc"]}
    content["override"]["schedule"] |= {"epochs": 2, "milestones": [1]}
    content["monitor"] |= {"log_steps": 1}


def test_from_the_archive_to_a_table(tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    write_archive(mirror / "voc2007" / TEST, photographs() or drawn(range(1, 25), (500, 375)), "test")
    project = copy_project(tmp_path / "project", monkeypatch)
    expect(project, mirror)
    edit(project / f"params/suites/{SUITE}.yaml", short)
    with served({"mirror": mirror}) as url:
        monkeypatch.setenv("TSD_MIRROR", f"{url}/mirror")
        plan = snakemake("voc", options=("-n", "--quiet", "rules"), cwd=project, suite=SUITE).stdout
        assert "import_data" in plan
        assert "train_detector" not in plan  # no run has a name before its data is there
        snakemake("voc", cwd=project, suite=SUITE)
    out = project / "data" / SUITE
    counts = {
        split: len(json.loads((out / f"annotations/instances_{split}.json").read_text())["images"])
        for split in ("train", "val")
    }
    assert sum(counts.values()) == 24
    assert all(len(list((out / split).iterdir())) == counts[split] for split in counts)
    assert sorted(path.name for path in (project / "data").iterdir()) == ["archives", SUITE]

    found = [json.loads(path.read_text()) for path in (project / "results" / SUITE / "metrics").glob("*.json")]
    assert sorted(content["run"]["experiment"] for content in found) == EXPERIMENTS
    assert {content["images"] for content in found} == {counts["val"]}
    table = pd.read_csv(project / "results" / SUITE / "tables/voc.csv").set_index(["row", "metric"])
    for content in found:
        for metric in ("AP", "AP50", "AP75", "VOC07_AP50", "VOC_AP50"):
            cell = table.loc[(content["run"]["experiment"], metric)]
            assert (cell["mean"], cell["n"]) == (pytest.approx(100 * content["metrics"][metric]), 1)
    text = (project / "results" / SUITE / "tables/voc.md").read_text()
    assert "| AP | AP.5 | AP.75 | VOC AP.5, 11 points | VOC AP.5, all points |\n" in text  # no column of the paper's
    assert text.count("not run") == 5 * 5  # the five arms that this short form leaves out

    # The data is there now: it is not made again, and the same line has nothing to do.
    again = run("snakemake", "-n", "--config", f"suite={SUITE}", "--", "voc", cwd=project).stdout
    assert "Nothing to be done" in again
