"""Pascal VOC's files → COCO JSON: by hand, against published pictures that were converted before, and every fault."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import tsd
from tsd.cli import main
from tsd.data.formats import voc
from tsd.errors import InputError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""


def describe(folder: Path, stem: str, *objects, size=(40, 20), suffix="jpg", stated=None) -> None:
    """Write a picture and its XML file."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 60)).save(folder / f"JPEGImages/{stem}.{suffix}")
    width, height = stated or size
    parts = "".join(OBJECT.format(name=name, box=box, difficult=difficult) for name, box, difficult in objects)
    text = f"<annotation><size><width>{width}</width><height>{height}</height></size>{parts}</annotation>"
    (folder / f"Annotations/{stem}.xml").write_text(text)


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of which has no object."""
    folder = tmp_path / "VOC2007"
    describe(folder, "000004", ("dog", (1, 1, 40, 20), 0), ("person", (11, 6, 20, 15), 1))
    describe(folder, "000012", ("person", (2.5, 3, 4, 3), 0))
    describe(folder, "000007")
    (folder / "ImageSets/Main/trainval.txt").write_text("000004\n000007\n")
    (folder / "ImageSets/Main/test.txt").write_text("000012\n")
    (folder / "ImageSets/Main/person_test.txt").write_text("000012  1\n000007 -1\n")
    return folder


def convert(folder, out, **options):
    splits = {"train": voc.read_folder(folder, "trainval"), "val": voc.read_folder(folder, "test")}
    counts = voc.import_voc(splits, out, voc.Options(**options))
    return counts, {split: json.loads((out / f"annotations/instances_{split}.json").read_text()) for split in splits}


def test_inclusive_corners_counted_from_one_become_continuous(folder, tmp_path):
    counts, content = convert(folder, tmp_path / "out")
    assert counts == {"train": (2, 2), "val": (1, 1)}
    train = content["train"]
    assert [(image["id"], image["file_name"]) for image in train["images"]] == [(4, "000004.jpg"), (7, "000007.jpg")]
    dog, person = train["annotations"]
    assert (dog["bbox"], dog["area"], dog["iscrowd"], dog["category_id"]) == ([0, 0, 40, 20], 800, 0, 12)
    assert (person["bbox"], person["area"], person["iscrowd"], person["category_id"]) == ([10, 5, 10, 10], 100, 1, 15)
    assert content["val"]["annotations"][0]["bbox"] == [1.5, 2, 2.5, 1]
    assert [category["name"] for category in train["categories"]] == list(voc.CLASSES)
    assert (tmp_path / "out/train/000004.jpg").read_bytes() == (folder / "JPEGImages/000004.jpg").read_bytes()


def test_reduced_pictures_have_reduced_boxes(folder, tmp_path):
    _, content = convert(folder, tmp_path / "out", max_side=10)
    image, (dog, person) = content["train"]["images"][0], content["train"]["annotations"]
    assert (image["width"], image["height"]) == (10, 5)
    assert Image.open(tmp_path / "out/train/000004.jpg").size == (10, 5)
    assert (dog["bbox"], person["bbox"]) == ([0, 0, 10, 5], [2.5, 1.25, 2.5, 2.5])


def test_a_list_of_one_class_leaves_out_what_is_marked_without_it(folder):
    assert [picture.stem for picture in voc.read_folder(folder, "person_test")] == ["000012"]


def test_the_split_by_digest_moves_no_picture_when_others_come(folder):
    before = voc.split_by_digest(voc.read_folder(folder, None), 0.5)
    for number in range(100, 140):
        describe(folder, f"{number:06d}")
    after = voc.split_by_digest(voc.read_folder(folder, None), 0.5)
    for split, pictures in before.items():
        assert {picture.stem for picture in pictures} <= {picture.stem for picture in after[split]}
    assert 5 < len(after["val"]) < 38
    assert voc.fraction("a") == pytest.approx(0xCA978112 / 2**32)  # SHA-256 of "a": ca978112…


def test_names_that_are_no_numbers_get_ids_by_their_order(folder, tmp_path):
    describe(folder, "2008_000003", ("dog", (1, 1, 2, 2), 0))
    (folder / "ImageSets/Main/test.txt").write_text("2008_000003\n")
    _, content = convert(folder, tmp_path / "out")
    assert [image["id"] for image in content["train"]["images"] + content["val"]["images"]] == [1, 2, 3]


def test_classes_as_given_or_as_found(folder, tmp_path):
    _, content = convert(folder, tmp_path / "a", classes=("person", "dog", "cat"))
    assert [category["name"] for category in content["val"]["categories"]] == ["person", "dog", "cat"]
    assert content["val"]["annotations"][0]["category_id"] == 1
    _, content = convert(folder, tmp_path / "b", classes=None)
    assert [category["name"] for category in content["val"]["categories"]] == ["dog", "person"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "Annotations/000004.xml").write_text("<annotation><size>"), "000004.xml: not valid XML: "),
        (lambda f: describe(f, "000004", stated=(40, 21)), "000004.xml: size: 40x21, but 000004.jpg is 40x20 pixels"),
        (lambda f: (f / "Annotations/000004.xml").write_text("<annotation/>"), "000004.xml: no size/width"),
        (lambda f: describe(f, "000004", ("dog", (1, 1, 41, 20), 0)), r"object 1 \(dog\): bndbox 1 1 41 20 is outside"),
        (lambda f: describe(f, "000004", ("dog", (0, 1, 4, 4), 0)), "count pixels from 0.*--first-pixel 0"),
        (lambda f: describe(f, "000004", ("dog", (5, 1, 4, 4), 0)), "bndbox 5 1 4 4 is empty"),
        (lambda f: describe(f, "000004", ("dog", ("x", 1, 4, 4), 0)), "bndbox/xmin: expected pixels, got 'x'"),
        (lambda f: describe(f, "000004", ("", (1, 1, 4, 4), 0)), "object 1: no name"),
        (lambda f: (f / "JPEGImages/000007.jpg").unlink(), "000007.xml: no picture 000007 in .*JPEGImages"),
        (lambda f: (f / "Annotations/000007.xml").unlink(), "000007.xml: not there, but the picture 000007 is wanted"),
        (lambda f: describe(f, "000007", suffix="png"), "000007.png: there is 000007.jpg too"),
        (lambda f: (f / "JPEGImages/000007.jpg").write_bytes(b"no"), "000007.jpg: not a picture"),
        (lambda f: (f / "ImageSets/Main/trainval.txt").unlink(), "no such list; there is: person_test, test"),
        (lambda f: (f / "Annotations").rename(f / "xml"), "no folder Annotations in it; expected VOC's layout"),
        (lambda f: (f / "ImageSets/Main/test.txt").write_text("000004\n"), "picture 000004: there twice"),
        (lambda f: describe(f, "000004", ("cow boy", (1, 1, 4, 4), 0)), "unknown class 'cow boy'; known: aeroplane"),
    ],
)
def test_a_fault_is_named_and_nothing_is_left(folder, tmp_path, break_it, message):
    break_it(folder)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["VOC2007"]


def test_all_faults_are_listed_at_once(folder):
    for number in range(30):
        describe(folder, f"1{number:05d}", stated=(1, 1))
    with pytest.raises(InputError) as caught:
        voc.read_folder(folder, None)
    lines = str(caught.value).splitlines()
    assert len(lines) == voc.SHOWN + 1
    assert lines[-1] == "… and 10 more"


def test_what_is_there_is_not_overwritten(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    command = ["data", "import", "voc", str(folder), "--train", "trainval", "--val", "test", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 2
    assert "out: is there already; expected the name of a new folder" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "new")]) == 0
    assert "instances_val.json: 1 pictures, 1 boxes" in capsys.readouterr().out
    assert main([*command[:4], "--out", str(tmp_path / "other")]) == 2
    assert "expected --val LIST or --val-fraction FRACTION" in capsys.readouterr().err


@pytest.fixture
def published():
    """Pictures of VOC 2007 as published, and the same reduced and converted before by other code."""
    places = [os.environ.get(name) for name in ("TSD_VOC_SAMPLE", "TSD_VOC_SMALL")]
    if not all(places):
        pytest.skip("TSD_VOC_SAMPLE and TSD_VOC_SMALL are not set")
    return [Path(place) for place in places]


def test_published_pictures_come_out_as_before(published, tmp_path):
    sample, small = published
    out = tmp_path / "out"
    done = tsd(
        *("data", "import", "voc", sample, "--out", out),
        *("--val-fraction", 0.3279, "--max-side", 320, "--quality", 82, "--workers", 2),
    )
    assert done.returncode == 0, done.stderr
    number = 0
    for split in ("train", "val"):
        ours = json.loads((out / f"annotations/instances_{split}.json").read_text())
        theirs = json.loads((small / f"annotations/instances_{split}.json").read_text())
        images = {image["file_name"]: image for image in theirs["images"]}
        for image in ours["images"]:
            name, number = image["file_name"], number + 1
            assert image == images[name]
            assert (out / split / name).read_bytes() == (small / split / name).read_bytes()
            assert boxes(ours, image["id"]) == boxes(theirs, image["id"])
    assert number == 24


def boxes(content, image_id):
    keys = ("category_id", "bbox", "area", "iscrowd")
    return [[entry[key] for key in keys] for entry in content["annotations"] if entry["image_id"] == image_id]
