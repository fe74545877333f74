"""From COCO's archives on a server to a folder, whole or not at all; and a folder of one's own in its place."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from tests.coco_kit import NAMES, drawn, source_of, write_archive, write_mirror
from tests.data.formats.test_voc_archives import everything, in_a_process
from tests.data.test_transfer import Faulty
from tsd.data import fetch, transfer
from tsd.data.formats.coco_archives import make_folder, verify_folder
from tsd.data.formats.coco_place import PARTS, Place
from tsd.data.manifest import read_manifest
from tsd.data.serve import served
from tsd.errors import InputError, WorkError

PLACE = Place("small", Path("data/small"))
TRAIN = PLACE.out / "train2017/000000000002.jpg"


class Server(Faulty):
    script: ClassVar[list[str]] = []
    seen: ClassVar[list[tuple[str, str]]] = []


@pytest.fixture
def source(tmp_path, fetching):
    """Of a server with the archives, and a current folder to fetch to."""
    write_mirror(tmp_path / "mirror")
    Server.script.clear()
    Server.seen.clear()
    with served({"small": tmp_path / "mirror"}, Server) as url:
        yield source_of(tmp_path / "mirror", f"{url}/small/")


def own(folder):
    """A folder as somebody has unpacked it."""
    for split, numbers in NAMES.items():
        pictures, instances = drawn(numbers)
        (folder / f"{split}2017").mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        for name, content in pictures.items():
            (folder / f"{split}2017" / name).write_bytes(content)
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(instances))
    return folder


def left():
    """What is in data/ besides the archives."""
    return sorted(path.name for path in Path("data").iterdir() if path.name != "archives")


def test_the_folder_is_what_the_archives_hold_and_no_more(source, tmp_path):
    Server.script += ["500", "cut"]
    assert make_folder(PLACE, source) == {"train2017": 5, "val2017": 3, "annotations": 2}
    assert everything(PLACE.out) == everything(own(tmp_path / "expected"))
    assert left() == ["small", "small.json", "small.parquet"]
    splits = read_manifest(PLACE.manifest)["splits"]
    assert (splits["train"]["images"]["count"], splits["val"]["images"]["count"]) == (5, 3)
    assert verify_folder(PLACE, source) == {"train": 5, "val": 3}
    Server.seen.clear()
    assert make_folder(PLACE, source) is None
    assert Server.seen == []


def test_an_archive_that_was_cut_off_is_gone_on_with(source, monkeypatch):
    monkeypatch.setattr(transfer, "CHUNK", 1000)  # of a piece that breaks nothing is kept
    Server.script += ["cut"] + ["404"] * 5
    with pytest.raises(WorkError, match="404"):
        make_folder(PLACE, source)
    assert (PLACE.store / "zips/train2017.zip.part").stat().st_size > 0
    assert not PLACE.out.exists()
    Server.script.clear()
    Server.seen.clear()
    make_folder(PLACE, source)
    assert Server.seen[0][1].startswith("bytes=")
    assert verify_folder(PLACE, source) == {"train": 5, "val": 3}


def test_killed_at_any_moment_the_next_call_makes_the_same(source, tmp_path, monkeypatch):
    expected = everything(own(tmp_path / "expected"))
    moment, ended = 3, False
    while not ended:
        place = tmp_path / f"killed{moment}"
        place.mkdir()
        monkeypatch.chdir(place)
        ended = in_a_process(lambda: make_folder(PLACE, source), killed_at=moment)
        if not ended and PLACE.out.exists():
            assert everything(PLACE.out) == expected  # whole, or not there
        assert in_a_process(lambda: make_folder(PLACE, source))
        assert everything(PLACE.out) == expected
        assert left() == ["small", "small.json", "small.parquet"]
        assert verify_folder(PLACE, source) == {"train": 5, "val": 3}
        moment += 9
    assert moment > 60


def test_what_is_unpacked_is_not_unpacked_again(source):
    make_folder(PLACE, source, ["train2017"])
    assert left() == [PLACE.scratch.name]
    kept = PLACE.scratch / "train2017/000000000002.jpg"
    stamp = kept.stat().st_mtime_ns
    (PLACE.scratch / "train2017/000000000003.jpg").unlink()
    make_folder(PLACE, source)
    assert TRAIN.stat().st_mtime_ns == stamp
    assert verify_folder(PLACE, source) == {"train": 5, "val": 3}


def test_an_archive_with_another_number_of_pictures_makes_no_folder(source):
    with pytest.raises(InputError, match=r"val2017.zip: 3 pictures, expected 4 by params/sources.yaml, small"):
        make_folder(PLACE, replace(source, pictures={"train": 5, "val": 4}))
    assert not PLACE.out.exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_ones_own_takes_the_place_of_fetching(source, tmp_path, linked):
    mine = own(tmp_path / "mine" if linked else PLACE.out)
    if linked:
        PLACE.out.parent.mkdir()
        PLACE.out.symlink_to(mine)
    before = everything(mine)
    assert make_folder(PLACE, source) is None
    assert Server.seen == []
    assert everything(mine) == before
    assert verify_folder(PLACE, source) == {"train": 5, "val": 3}
    PLACE.manifest.unlink()
    assert verify_folder(PLACE, source) == {"train": 5, "val": 3}


def test_a_manifest_without_its_sizes_and_a_folder_that_is_not_there_are_told(source):
    with pytest.raises(InputError, match=r"^data/small: no such folder; `tsd data fetch` makes it"):
        verify_folder(PLACE, source)
    own(PLACE.out)
    make_folder(PLACE, source)
    PLACE.sizes.unlink()
    with pytest.raises(InputError, match=r"^data/small.parquet: missing, or not the one that belongs to data/small.js"):
        verify_folder(PLACE, source)


def jpeg(size):
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "JPEG")
    return content.getvalue()


def change(key, edit):
    def spoil():
        path = PLACE.split("val")[0]
        content = json.loads(path.read_text())
        content[key] = edit(content[key])
        path.write_text(json.dumps(content))

    return spoil


SPOILT = [
    (lambda: TRAIN.write_bytes(jpeg((72, 96))), f"{TRAIN}: 72 x 96 pixels, expected 96 x 72"),
    (lambda: TRAIN.unlink(), f"{TRAIN}: missing"),
    (lambda: TRAIN.write_bytes(b"no picture"), f"{TRAIN}: not a JPEG picture"),
    (
        change("annotations", lambda all: all[1:]),
        f"{PLACE.split('val')[0]}: {{}} annotations, expected {{}}".format(
            len(drawn(NAMES["val"])[1]["annotations"]) - 1, len(drawn(NAMES["val"])[1]["annotations"])
        ),
    ),
    (
        change("categories", lambda all: [*all, {"id": 9, "name": "bird"}]),
        f"{PLACE.split('val')[0]}: 4 categories, expected 3",
    ),
    (
        change("images", lambda all: [*all, {"id": 99, "file_name": "9.jpg", "width": 1, "height": 1}]),
        f"{PLACE.split('val')[0]}: 4 pictures, expected 3",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_folder_that_is_not_the_sources_is_refused_and_left_alone(source, spoil, message):
    own(PLACE.out)
    spoil()
    before = everything(PLACE.out)
    with pytest.raises(InputError) as caught:
        make_folder(PLACE, source)
    assert message in str(caught.value).splitlines()
    assert "If it is data of your own, make a suite of it (docs/own-data.md)" in str(caught.value)
    assert everything(PLACE.out) == before
    assert left() == ["small"]
    assert Server.seen == []


def test_what_changed_since_is_named(source):
    make_folder(PLACE, source)
    content = TRAIN.read_bytes()
    TRAIN.write_bytes(content[:-9])  # its header says what it said before
    with pytest.raises(InputError, match=rf"^{TRAIN}: {len(content) - 9} bytes, expected {len(content)}\n"):
        verify_folder(PLACE, source)
    TRAIN.write_bytes(content)
    path = PLACE.split("val")[0]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match=rf"{path}: content differs from {PLACE.manifest}: its SHA-256 is"):
        verify_folder(PLACE, source)


def test_a_part_of_a_folder_is_left_alone_and_named(source):
    own(PLACE.out)
    shutil.rmtree(PLACE.out / "val2017")
    before = everything(PLACE.out)
    with pytest.raises(InputError, match=r"^data/small/val2017: not there, but data/small is; complete it, or remove"):
        make_folder(PLACE, source)
    assert everything(PLACE.out) == before
    shutil.rmtree(PLACE.out)
    (PLACE.out / "annotations").mkdir(parents=True)  # nothing: as Snakemake makes them
    assert make_folder(PLACE, source) is not None


def test_another_folder_than_that_of_todays_source_is_told(source):
    make_folder(PLACE, source)
    other = replace(source, files=tuple(replace(file, sha256="0" * 64) for file in source.files))
    with pytest.raises(InputError, match=r"data/small.json: describes a folder of other archives"):
        make_folder(PLACE, other)


def test_pictures_of_the_test_go_into_a_folder_that_is_there(source, tmp_path):
    archive = tmp_path / "mirror" / PARTS["test2017"].archive
    write_archive(archive, {f"test2017/{name}": content for name, content in drawn([9])[0].items()})
    file = replace(source.files[0], path=PARTS["test2017"].archive, bytes=archive.stat().st_size)
    file = replace(file, sha256=fetch.digest(archive))
    more = replace(source, files=(*source.files, file))
    with pytest.raises(InputError, match="data/small: not there: fetch it before test2017"):
        make_folder(PLACE, more, ["test2017"])
    make_folder(PLACE, source)
    assert make_folder(PLACE, more, ["test2017"]) == {"test2017": 1}
    assert (PLACE.out / "test2017/000000000009.jpg").is_file()
    assert verify_folder(PLACE, more) == {"train": 5, "val": 3}


def test_too_little_space_for_what_is_unpacked_is_told_before_anything_is_fetched(source, monkeypatch):
    size = sum(file.bytes for file in source.files)
    monkeypatch.setattr(fetch, "free_space", lambda folder: int(1.5 * size))
    with pytest.raises(InputError, match=r"data/archives/small: .* GB are needed, .* GB are free"):
        make_folder(PLACE, source)
    assert Server.seen == []
