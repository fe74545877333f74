"""From COCO's archives on a server to a table in one call of Snakemake, with a source and a suite of the test's own."""

import json
import zipfile

import pandas as pd
import pytest
import yaml

from tests.coco_kit import NEEDED, expect, source_of, write_mirror
from tests.conftest import copy_project
from tests.data.formats.test_voc_archives import everything
from tests.workflow.test_pipeline import run, snakemake
from tsd.data.serve import served
from tsd.engine.identity import ABSENT, data_digest
from tsd.engine.params import get_run, load_suite

PICTURES = {"train": tuple(range(1, 9)), "val": (20, 21, 22)}


def suite(project):
    """``small``: the suite ``tiny`` in short, on the archives."""
    content = yaml.safe_load((project / "params/suites/tiny.yaml").read_text())
    splits = {
        split: {
            "annotations": f"data/small/annotations/instances_{split}2017.json",
            "images": f"data/small/{split}2017",
        }
        for split in ("train", "val")
    }
    content |= {"data": {"format": "coco", "source": "small", "classes": 3, **splits}}
    content |= {"experiments": ["baseline"], "tables": ["ablation"], "seeds": [0]}
    content["override"]["schedule"] |= {"epochs": 1, "milestones": []}
    (project / "params/suites/small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = copy_project(tmp_path / "project", monkeypatch)
    write_mirror(tmp_path / "mirror/small", PICTURES)
    expect(folder, source_of(tmp_path / "mirror/small", names=PICTURES))
    suite(folder)
    with served({"mirror": tmp_path / "mirror"}) as url:
        monkeypatch.setenv("TSD_MIRROR", f"{url}/mirror")
        yield folder


def test_from_the_archives_to_a_table(project):
    known = load_suite("small")
    digest = data_digest(known)
    assert digest != ABSENT
    plan = run("snakemake", "-n", "--quiet", "rules", "--config", "suite=small", "--", "ablation", cwd=project)
    assert plan.stderr.splitlines()[0].startswith("to be fetched: 3 files, ")
    assert "train_detector" in plan.stdout  # its name is known before the data is here
    done = snakemake("ablation", cwd=project, suite="small")
    assert "zips/train2017.zip" in done.stdout + done.stderr  # how far it is
    verified = json.loads((project / f"results/small/data/{digest}.json").read_text())
    assert verified == {"suite": "small", "data_digest": digest, "train": 8, "val": 3}
    assert sorted(path.name for path in (project / "data").iterdir()) == [
        "archives",
        "small",
        "small.json",
        "small.parquet",
    ]
    trained = get_run(known, "baseline", 0, digest)
    metrics = json.loads(trained.metrics_file.read_text())
    assert metrics["images"] == 3
    table = pd.read_csv(project / "results/small/tables/ablation.csv").set_index(["row", "metric"])
    assert table.loc[("baseline", "AP"), "n"] == 1
    assert data_digest(load_suite("small")) == digest
    again = run("snakemake", "-n", "--config", "suite=small", "--", "ablation", cwd=project)
    assert "Nothing to be done" in again.stdout
    assert again.stderr.startswith("data: data/small is there, nothing is fetched\n")


def test_another_archive_than_the_sources_stops_the_line_and_a_test_archive_retrains_nothing(project):
    before = data_digest(load_suite("small"))
    path = project / "params/sources.yaml"
    content = yaml.safe_load(path.read_text())
    content["small"]["files"].append({"path": "zips/test2017.zip", "bytes": 1, "sha256": "1" * 64})
    path.write_text(yaml.safe_dump(content))
    assert data_digest(load_suite("small")) == before  # nobody trains on the test's pictures
    content["small"]["files"][1]["sha256"] = "0" * 64
    path.write_text(yaml.safe_dump(content))
    assert data_digest(load_suite("small")) != before
    done = snakemake("data", cwd=project, suite="small", check=False)
    assert done.returncode == 1
    assert "val2017.zip: SHA-256 is" in done.stdout + done.stderr
    assert not (project / "data/small").exists()
    assert not (project / "data/small.json").exists()


def test_a_linked_folder_is_verified_where_it_is_and_left_as_it_is(project, tmp_path, monkeypatch):
    monkeypatch.setenv("TSD_MIRROR", "http://127.0.0.1:9")  # nobody is there
    mine = tmp_path / "mine"
    for part in NEEDED:
        with zipfile.ZipFile(tmp_path / "mirror/small" / part) as content:
            content.extractall(mine)
    (project / "data").mkdir()
    (project / "data/small").symlink_to(mine)
    before = everything(mine)
    snakemake("data", cwd=project, suite="small")
    assert (project / f"results/small/data/{data_digest(load_suite('small'))}.json").exists()
    assert (project / "data/small").is_symlink()
    assert everything(mine) == before
