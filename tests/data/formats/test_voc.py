"""Pascal VOC's files → COCO JSON: by hand, against published pictures that were converted before, and every fault."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import tsd
from tsd.cli import main
from tsd.data.formats import voc, voc_files
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


def convert(folder, out, lists=("trainval", "test"), **options):
    counts = voc.import_voc(folder, voc_files.Lists(*lists), out, voc_files.Options(**options))
    return counts, {split: json.loads((out / f"annotations/instances_{split}.json").read_text()) for split in counts}


def stems(folder, *lists) -> dict[str, list[str]]:
    splits = voc_files.read_splits(folder, voc_files.Lists(*lists), voc_files.Options())
    return {split: [picture.stem for picture in pictures] for split, pictures in splits.items()}


def faults(folder, *lists, **options) -> list[str]:
    with pytest.raises(InputError) as caught:
        voc_files.read_splits(folder, voc_files.Lists(*lists or ("trainval", "test")), voc_files.Options(**options))
    return str(caught.value).splitlines()


def test_inclusive_corners_counted_from_one_become_continuous(folder, tmp_path):
    counts, content = convert(folder, tmp_path / "out")
    assert counts == {"train": (2, 2), "val": (1, 1)}
    train = content["train"]
    assert [(image["id"], image["file_name"]) for image in train["images"]] == [(4, "000004.jpg"), (7, "000007.jpg")]
    dog, person = train["annotations"]
    assert (dog["bbox"], dog["area"], dog["iscrowd"], dog["category_id"]) == ([0, 0, 40, 20], 800, 0, 12)
    assert (person["bbox"], person["area"], person["iscrowd"], person["category_id"]) == ([10, 5, 10, 10], 100, 1, 15)
    assert content["val"]["annotations"][0]["bbox"] == [1.5, 2, 2.5, 1]
    assert [category["name"] for category in train["categories"]] == list(voc_files.CLASSES)
    assert (tmp_path / "out/train/000004.jpg").read_bytes() == (folder / "JPEGImages/000004.jpg").read_bytes()


def test_reduced_pictures_have_reduced_boxes(folder, tmp_path):
    _, content = convert(folder, tmp_path / "out", max_side=10)
    image, (dog, person) = content["train"]["images"][0], content["train"]["annotations"]
    assert (image["width"], image["height"]) == (10, 5)
    assert Image.open(tmp_path / "out/train/000004.jpg").size == (10, 5)
    assert (dog["bbox"], person["bbox"]) == ([0, 0, 10, 5], [2.5, 1.25, 2.5, 2.5])


def test_a_list_of_one_class_leaves_out_what_is_marked_without_it(folder):
    assert stems(folder, "trainval", "person_test")["val"] == ["000012"]


def test_without_a_list_for_training_it_gets_all_pictures_but_those_of_val(folder):
    assert stems(folder, None, "test") == {"train": ["000004", "000007"], "val": ["000012"]}


def test_the_split_by_digest_moves_no_picture_when_others_come(folder):
    describe(folder, "000013")  # its digest is below a half, unlike 000004's
    before = stems(folder, None, None, 0.5)
    for number in range(100, 140):
        describe(folder, f"{number:06d}")
    after = stems(folder, None, None, 0.5)
    for split, pictures in before.items():
        assert set(pictures) <= set(after[split])
    assert 5 < len(after["val"]) < 38
    assert voc_files.fraction("a") == pytest.approx(0xCA978112 / 2**32)  # SHA-256 of "a": ca978112…


def test_names_that_are_no_numbers_get_ids_by_their_order(folder, tmp_path):
    describe(folder, "2008_000003", ("dog", (1, 1, 2, 2), 0))
    (folder / "ImageSets/Main/test.txt").write_text("2008_000003\n")
    _, content = convert(folder, tmp_path / "out")
    assert [image["id"] for image in content["train"]["images"] + content["val"]["images"]] == [1, 2, 3]


@pytest.mark.parametrize("stem", ["20231231235959000", str(2**31), "4", "٤", "IMG 4"])
def test_names_that_evaluators_could_confuse_are_no_ids(folder, tmp_path, stem):
    describe(folder, stem)
    (folder / "ImageSets/Main/test.txt").write_text(f"000012\n{stem}\n", encoding="utf-8")
    _, content = convert(folder, tmp_path / "out")
    ids = [image["id"] for split in content.values() for image in split["images"]]
    assert sorted(ids) == [1, 2, 3, 4]


def test_classes_as_given_or_as_found(folder, tmp_path):
    _, content = convert(folder, tmp_path / "a", classes=("person", "dog", "cat"))
    assert [category["name"] for category in content["val"]["categories"]] == ["person", "dog", "cat"]
    assert content["val"]["annotations"][0]["category_id"] == 1
    _, content = convert(folder, tmp_path / "b", classes=None)
    assert [category["name"] for category in content["val"]["categories"]] == ["dog", "person"]


def encode(folder: Path, encoding: str) -> None:
    path = folder / "Annotations/000004.xml"
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{path.read_text()}')


def replace(path: Path, make) -> None:
    path.unlink()
    make(path)


def dangle(path: Path) -> None:
    path.symlink_to("nowhere")


def cut(path: Path) -> None:
    """Leave out the end of a picture that fills several of the decoder's buffers."""
    Image.effect_noise((40, 20), 90).save(path)
    path.write_bytes(path.read_bytes()[:-300])


BOMB = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)
BROKEN_PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 40, 20, 8, 2, 0, 0, 0) + b"none"


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
        (lambda f: (f / "JPEGImages/000007.jpg").write_bytes(b"no"), "000007.jpg: not a picture, or not a whole one"),
        (lambda f: (f / "ImageSets/Main/trainval.txt").unlink(), "no such list; there is: person_test, test"),
        (lambda f: (f / "Annotations").rename(f / "xml"), "no folder Annotations in it; expected VOC's layout"),
        (
            lambda f: (f / "ImageSets/Main/test.txt").write_text("000004\n"),
            "test.txt: picture 000004: there twice, in trainval too",
        ),
        (
            lambda f: describe(f, "000004", ("cow boy", (1, 1, 4, 4), 0)),
            r"000004.xml: object 1 \(cow boy\): unknown class 'cow boy'",
        ),
        (lambda f: describe(f, "000004", ("dog", (5.5, 1, 5, 4), 0)), "bndbox 5.5 1 5 4 is empty"),
        (lambda f: describe(f, "000004", ("dog", ("1e0", 1, 4, 4), 0)), "bndbox/xmin: expected pixels, got '1e0'"),
        (lambda f: describe(f, "000004", ("dog", ("1_0", 1, 4, 4), 0)), "bndbox/xmin: expected pixels, got '1_0'"),
        (
            lambda f: describe(f, "000004", ("dog", ("\uff14", 1, 4, 4), 0)),
            "bndbox/xmin: expected pixels, got '\uff14'",
        ),
        (lambda f: describe(f, "000004", stated=(40.5, 20)), "size: 40.5x20, but 000004.jpg is 40x20 pixels"),
        (lambda f: describe(f, "000004", ("dog", (1, 1, 4, 4), "yes")), "difficult: expected 0 or 1, got 'yes'"),
        (lambda f: encode(f, "gbk"), "000004.xml: not valid XML: multi-byte encodings are not supported"),
        (lambda f: encode(f, "shift_jis"), "000004.xml: not valid XML: multi-byte encodings are not supported"),
        (lambda f: encode(f, "unknown"), "000004.xml: not valid XML: unknown encoding"),
        (lambda f: replace(f / "Annotations/000004.xml", Path.mkdir), "000004.xml: is no file; expected an XML file"),
        (lambda f: replace(f / "Annotations/000004.xml", dangle), "000004.xml: is no file; expected an XML file"),
        (lambda f: replace(f / "JPEGImages/000004.jpg", os.mkfifo), "000004.jpg: is no file; expected a picture"),
        (lambda f: cut(f / "JPEGImages/000004.jpg"), "000004.jpg: not a picture, or not a whole one: .*truncated"),
        (lambda f: (f / "JPEGImages/000004.jpg").write_bytes(BOMB), "000004.jpg: not a picture.*decompression bomb"),
        (lambda f: (f / "JPEGImages/000004.jpg").write_bytes(BROKEN_PNG), "000004.jpg: not a picture, or not a whole"),
        (lambda f: (f / "ImageSets/Main/test.txt").write_bytes(b"\xff\xfe0"), "test.txt: expected UTF-8 text"),
        (lambda f: (f / "ImageSets/Main/test.txt").write_text("\n"), "VOC2007: no picture for val; see --train, --val"),
        (lambda f: (f / "ImageSets/Main/trainval.txt").write_text(""), "VOC2007: no picture for train"),
        (lambda f: (f / "ImageSets/Main/test.txt").write_text("000012\n" * 2), "test.txt: picture 000012: there twice"),
        (lambda f: shutil.copy(f / "Annotations/000004.xml", f / "Annotations/000004.XML"), "there is 000004.XML too"),
        (lambda f: (f / os.fsdecode(b"JPEGImages/\xe9.jpg")).touch(), r"udce9.jpg': expected a name in UTF-8"),
    ],
)
def test_a_fault_is_named_and_nothing_is_left(folder, tmp_path, break_it, message):
    break_it(folder)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["VOC2007"]


def test_all_faults_of_both_splits_are_listed_at_once(folder):
    describe(folder, "000004", ("fox", (1, 1, 4, 4), 0), ("dog", (0, 1, 4, 4), 0))
    cut(folder / "JPEGImages/000007.jpg")
    describe(folder, "000012", ("elk", (5, 1, 4, 4), 0))
    found = faults(folder)
    assert [line.partition(": ")[0].removeprefix(f"{folder}/") for line in found] == [
        *("Annotations/000004.xml", "Annotations/000004.xml", "JPEGImages/000007.jpg"),
        *("Annotations/000012.xml", "Annotations/000012.xml"),
    ]
    assert ["unknown class" in line for line in found] == [True, False, False, True, False]
    assert "known: dog" in faults(folder, classes=("dog",))[0]


def test_of_many_faults_the_first_twenty_are_listed(folder):
    for number in range(30):
        describe(folder, f"1{number:05d}", stated=(1, 1))
    lines = faults(folder, None, None, 0.5)
    assert len(lines) == voc_files.SHOWN + 1
    assert lines[-1] == "… and 10 more"


@pytest.mark.parametrize(("text", "crowd"), [("0", 0), ("1", 1), ("False", 0), ("TRUE", 1), (" 1 ", 1)])
def test_difficult_is_a_number_or_a_word(folder, tmp_path, text, crowd):
    describe(folder, "000012", ("person", (1, 1, 4, 3), text))
    assert convert(folder, tmp_path / "out")[1]["val"]["annotations"][0]["iscrowd"] == crowd


def test_lists_may_have_a_byte_order_mark_marks_and_names_with_spaces(folder):
    for stem in ("my cat", "photo 1", "photo"):
        describe(folder, stem)
    (folder / "ImageSets/Main/test.txt").write_text("\ufeff000012  1\nmy cat  0\r\nphoto -1\n", encoding="utf-8")
    assert stems(folder, "trainval", "test")["val"] == ["000012", "my cat"]
    (folder / "JPEGImages/photo.jpg").unlink()
    (folder / "Annotations/photo.xml").unlink()
    (folder / "ImageSets/Main/test.txt").write_text("photo 1\nmy cat\n")
    assert stems(folder, "trainval", "test")["val"] == ["photo 1", "my cat"]


def test_class_files_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffdog\ncat\n", encoding="utf-8")
    assert voc_files.read_classes(tmp_path / "names.txt") == ("dog", "cat")


def test_suffixes_may_be_in_capitals(folder):
    (folder / "Annotations/000012.xml").rename(folder / "Annotations/000012.XML")
    (folder / "JPEGImages/000012.jpg").rename(folder / "JPEGImages/000012.JPG")
    assert stems(folder, "trainval", "test")["val"] == ["000012"]


def test_found_classes_are_one_at_least(folder, tmp_path):
    for stem in ("000004", "000012"):
        describe(folder, stem)
    with pytest.raises(InputError, match="--classes found: no picture has an object"):
        convert(folder, tmp_path / "out", classes=None)


def test_a_box_that_a_reduced_picture_has_no_room_for_is_a_fault(folder, tmp_path):
    describe(folder, "000012", ("person", (7, 7, 7, 7), 0), ("dog", (1, 1, 4000, 20), 0), size=(4000, 20))
    (fault,) = faults(folder, max_side=16)  # a pixel's width is then 0.004
    assert "object 1 (person): its box has no width or height with --max-side 16; take a larger one" in fault
    _, content = convert(folder, tmp_path / "out", max_side=40)
    person, dog = content["val"]["annotations"]
    assert person["bbox"] == [0.06, 0.3, 0.01, 0.05]
    assert min(person["area"], dog["area"]) > 0


def test_sixteen_bits_become_eight(folder, tmp_path):
    for suffix in ("jpg", "png"):
        picture = Image.new("I;16", (40, 20), 30000)  # 30000 / 257 = 116.7
        (folder / "JPEGImages/000012.jpg").unlink(missing_ok=True)
        picture.save(folder / f"JPEGImages/000012.{suffix}", format="PNG")
        convert(folder, tmp_path / suffix, max_side=10, quality=90)
        written = Image.open(tmp_path / suffix / f"val/000012.{suffix}")
        assert (written.size, written.getpixel((5, 2))) == ((10, 5), (117, 117, 117))


def test_thirty_two_bits_are_refused(folder, tmp_path):
    Image.new("I", (40, 20), 70000).save(folder / "JPEGImages/000012.jpg", format="TIFF")
    with pytest.raises(InputError, match=r"000012\.jpg: not a whole picture: mode I, of 32 bits; expected 8 or 16"):
        convert(folder, tmp_path / "out", max_side=10)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "out", [".", "..", "link", "dangling", "VOC2007/ImageSets/Main/test.txt/out", "n" * 256, "/proc"]
)
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(folder, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    Path("dangling").symlink_to("nowhere")
    before = sorted(path.name for path in tmp_path.iterdir())
    (folder / "Annotations/000004.xml").unlink()  # which would be a fault of the work
    assert main(["data", "import", "voc", str(folder), "--val", "test", "--out", out]) == 2
    assert capsys.readouterr().err.startswith(f"{out}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_new_folder_in_new_folders_goes_with_them_when_the_work_fails(folder, tmp_path):
    cut(folder / "JPEGImages/000004.jpg")
    with pytest.raises(InputError):
        convert(folder, tmp_path / "a/b/out")
    assert not (tmp_path / "a").exists()
    describe(folder, "000004")
    assert convert(folder, tmp_path / "a/b/out")[0] == {"train": (2, 0), "val": (1, 1)}


def test_a_full_disk_fails_the_work_and_leaves_nothing(folder, tmp_path, capsys):
    Image.effect_noise((40, 20), 90).resize((400, 200)).save(folder / "JPEGImages/000012.bmp")
    (folder / "JPEGImages/000012.jpg").unlink()
    text = (folder / "Annotations/000012.xml").read_text()
    (folder / "Annotations/000012.xml").write_text(text.replace(">40<", ">400<").replace(">20<", ">200<"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        status = main(["data", "import", "voc", str(folder), "--val", "test", "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    error = capsys.readouterr().err
    assert "val/000012.bmp: can't be written: File too large" in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["VOC2007"]


def test_a_scheduler_that_ends_it_leaves_nothing(folder, tmp_path):
    Image.effect_noise((3000, 2000), 90).save(folder / "JPEGImages/big.jpg")
    describe(folder, "000004", size=(3000, 2000))
    for number in range(100, 200):
        shutil.copy(folder / "Annotations/000004.xml", folder / f"Annotations/{number}.xml")
        os.link(folder / "JPEGImages/big.jpg", folder / f"JPEGImages/{number}.jpg")
    (folder / "JPEGImages/big.jpg").unlink()
    words = ("data", "import", "voc", folder, "--out", tmp_path / "out", "--val", "test", "--quality", "90")
    with subprocess.Popen([sys.executable, "-m", "tsd.cli", *words], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.glob(".*.tmp")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        assert process.stderr.read() == "stopped by signal SIGTERM\n"
    assert [path.name for path in tmp_path.iterdir()] == ["VOC2007"]


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
