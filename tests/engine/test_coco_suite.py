"""Suites whose data is made of COCO's archives: what it is, what their params say, and what they must not say."""

import pytest
import yaml

from tests.engine.test_params import edit
from tsd.cli import main
from tsd.engine.identity import ABSENT, data_digest
from tsd.engine.params import load_suite
from tsd.errors import ParamsError

SUITE, SOURCES = "params/suites/coco.yaml", "params/sources.yaml"


def test_the_data_is_known_before_it_is_there_and_two_suites_share_it(project):
    digest = data_digest(load_suite("coco"))
    assert digest == "3a620b7dabde"  # a change of it would train anew everything that was ever trained on COCO
    assert data_digest(load_suite("released")) == digest
    edit(project, lambda sources: sources["coco"]["files"][3].update(sha256="1" * 64), SOURCES)
    assert data_digest(load_suite("coco")) not in (digest, ABSENT)


def test_what_is_in_the_folder_does_not_change_what_the_data_is(project):
    before = data_digest(load_suite("coco"))
    for split in ("train", "val"):
        annotations, _ = load_suite("coco").split(split)
        annotations.parent.mkdir(parents=True, exist_ok=True)
        annotations.write_text("{}")
    assert data_digest(load_suite("coco")) == before


def test_what_must_be_in_the_folder_is_what_is_published(root):
    coco = yaml.safe_load((root / SOURCES).read_text())["coco"]
    assert coco["pictures"] == {"train": 118_287, "val": 5_000}
    assert coco["annotations"] == {"train": 860_001, "val": 36_781}
    assert coco["categories"] == 80


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (
            SUITE,
            lambda suite: suite["data"]["val"].update(images="elsewhere/val2017"),
            r"coco.yaml: data.val: expected data/coco/annotations/instances_val2017.json and data/coco/val2017, as the "
            r"archives of a source have them; got .*elsewhere/val2017; leave data.source out for data of your own",
        ),
        (SUITE, lambda suite: suite["data"].pop("classes"), r"coco.yaml: data.classes: missing key"),
        (
            SUITE,
            lambda suite: suite["data"].update(source="cocoa"),
            r"sources.yaml: no source 'cocoa'; there are: coco",
        ),
        (
            SUITE,
            lambda suite: suite["data"].update(source="voc2007"),
            r"coco.yaml: data.source: voc2007 of params/sources.yaml has no zips/train2017.zip: expected the archives",
        ),
        (
            SOURCES,
            lambda sources: sources["coco"]["annotations"].update(train="all"),
            r"sources.yaml: coco.annotations.train: expected a number of annotations, got 'all'",
        ),
        (
            SOURCES,
            lambda sources: sources["coco"].update(categories="80"),
            r"sources.yaml: coco.categories: expected int, got '80'",
        ),
        (
            SOURCES,
            lambda sources: sources["coco"].update(categories=True),
            r"sources.yaml: coco.categories: expected int, got True",
        ),
        (
            SOURCES,
            lambda sources: sources["coco"]["files"][0].update(bytes=-1),
            r"sources.yaml: coco.files.0.bytes: expected an integer from 0, got -1",
        ),
        (
            SOURCES,
            lambda sources: sources["coco"]["files"][0].update(sha256="69a8"),
            r"sources.yaml: coco.files.0.sha256: expected 64 hexadecimal digits, got '69a8'",
        ),
    ],
)
def test_what_does_not_go_together_is_named(project, path, change, message):
    edit(project, change, path)
    with pytest.raises(ParamsError, match=message):
        load_suite("coco")


def test_a_source_that_is_given_twice_is_named(project):
    with (project / SOURCES).open("a") as file:
        file.write("coco: {files_url: x, files: []}\n")
    with pytest.raises(ParamsError, match=r"sources.yaml: line \d+ column 1: key 'coco' is given twice"):
        load_suite("coco")


def test_a_linked_folder_of_other_pictures_is_refused_with_the_way(project, tmp_path, capsys):
    mine = tmp_path / "mine"
    for name in ("annotations", "train2017", "val2017"):
        (mine / name).mkdir(parents=True)
    for split in ("train", "val"):
        (mine / f"annotations/instances_{split}2017.json").write_text(
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}'
        )
    (project / "data").mkdir()
    (project / "data/coco").symlink_to(mine)
    assert main(["data", "fetch", "--suite", "coco"]) == 2
    said = capsys.readouterr().err
    assert "data/coco/annotations/instances_train2017.json: 0 pictures, expected 118287" in said
    assert "data/coco/annotations/instances_val2017.json: 1 categories, expected 80" in said
    assert "If it is data of your own, make a suite of it (docs/own-data.md)" in said
    assert sorted(path.name for path in mine.iterdir()) == ["annotations", "train2017", "val2017"]
