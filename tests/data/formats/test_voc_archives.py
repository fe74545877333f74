"""From VOC's archives on a server to a folder in COCO's format: whole or not at all, and killed at any moment."""

import json
import os
import signal
import sys
import tarfile
from typing import ClassVar

import pytest

from tests.data.test_transfer import Faulty
from tests.voc_kit import ROOT, TEST, TRAINVAL, drawn, photographs, write_archive
from tsd.data.formats.voc import import_voc
from tsd.data.formats.voc_archives import make_folder, read_archives
from tsd.data.formats.voc_files import Lists, Options
from tsd.data.manifest import digest
from tsd.data.serve import served
from tsd.data.sources import Source, SourceFile
from tsd.errors import InputError, WorkError
from tsd.files import exclusive

TRAIN, VAL = drawn([1, 2, 4]), drawn([3, 6])
BOTH = {"voc": ROOT, "archives": [TRAINVAL, TEST], "train": "trainval", "val": "test"}


class Server(Faulty):
    script: ClassVar[list[str]] = []
    seen: ClassVar[list[tuple[str, str]]] = []


@pytest.fixture
def mirror(tmp_path, fetching):
    """A server with both archives, and a current folder to fetch to."""
    folder = tmp_path / "mirror"
    write_archive(folder / TRAINVAL, TRAIN, "trainval")
    write_archive(folder / TEST, VAL, "test")
    Server.script.clear()
    Server.seen.clear()
    with served({"voc2007": folder}, Server) as url:
        yield folder, url


def source_of(mirror):
    folder, url = mirror
    files = tuple(SourceFile(path.name, path.stat().st_size, digest(path)) for path in sorted(folder.glob("*.tar")))
    return Source("voc2007", f"{url}/voc2007/", files, None, {})


def suite(told, folder="data/voc"):
    """``data`` of a suite."""
    splits = {
        split: {"annotations": f"{folder}/annotations/instances_{split}.json", "images": f"{folder}/{split}"}
        for split in ("train", "val")
    }
    return {"format": "coco", "source": "voc2007", "import": told, "classes": 20, **splits}


def make(mirror, told=BOTH):
    return make_folder(read_archives(suite(told)), source_of(mirror))


def everything(folder):
    """Content of every file below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left(tmp_path):
    """What is in data/ besides the archives."""
    return sorted(path.name for path in (tmp_path / "project/data").iterdir() if path.name != "archives")


def test_the_folder_is_what_an_import_of_the_unpacked_archives_gives(mirror, tmp_path):
    Server.script += ["500", "cut"]
    counts = make(mirror)
    assert {split: number for split, (number, _) in counts.items()} == {"train": 3, "val": 2}
    for name in (TRAINVAL, TEST):
        with tarfile.open(mirror[0] / name) as content:
            content.extractall(tmp_path / "kit", filter="data")
    import_voc(tmp_path / "kit" / ROOT, Lists("trainval", "test"), tmp_path / "expected", Options())
    made = everything(tmp_path / "project/data/voc")
    assert made == everything(tmp_path / "expected")
    assert len(made) == 2 + 5
    assert left(tmp_path) == ["voc"]


def test_pictures_of_one_archive_are_parted_and_reduced_as_told(mirror, tmp_path):
    files = photographs() or drawn(range(1, 25), (500, 333))
    write_archive(mirror[0] / TEST, files, "test")
    told = {"voc": ROOT, "archives": [TEST], "val_fraction": 0.3279, "max_side": 320, "quality": 82}
    counts = make(mirror, told)
    assert sum(number for number, _ in counts.values()) == 24
    assert len(Server.seen) == 1  # the other archive is not asked for
    out = tmp_path / "project/data/voc"
    content = json.loads((out / "annotations/instances_train.json").read_text())
    assert max(max(image["width"], image["height"]) for image in content["images"]) == 320
    assert all((out / "train" / image["file_name"]).is_file() for image in content["images"])


def test_a_folder_that_is_whole_is_neither_fetched_nor_made_again(mirror, tmp_path):
    make(mirror)
    for archive in (tmp_path / "project/data/archives/voc2007").glob("*.tar"):
        archive.unlink()
    before = everything(tmp_path / "project/data/voc")
    Server.seen.clear()
    assert make(mirror) is None
    assert Server.seen == []
    assert everything(tmp_path / "project/data/voc") == before


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_somebody_put_there_is_used_as_it_is(mirror, tmp_path, linked):
    own = tmp_path / ("mine" if linked else "project/data/voc")
    for name in ("annotations", "train", "val"):
        (own / name).mkdir(parents=True)
    for split in ("train", "val"):
        (own / f"annotations/instances_{split}.json").write_text("mine")
    if linked:
        (tmp_path / "project/data").mkdir()
        (tmp_path / "project/data/voc").symlink_to(own)
    assert make(mirror) is None
    assert everything(own) == {f"annotations/instances_{split}.json": b"mine" for split in ("train", "val")}
    assert Server.seen == []


def test_a_part_of_a_folder_is_left_alone_and_named(mirror, tmp_path):
    own = tmp_path / "project/data/voc"
    (own / "annotations").mkdir(parents=True)
    (own / "annotations/instances_train.json").write_text("mine")
    with pytest.raises(InputError, match=r"voc/train: not there, but data/voc is; complete it, or remove it"):
        make(mirror)
    assert (own / "annotations/instances_train.json").read_text() == "mine"
    own.joinpath("annotations/instances_train.json").unlink()
    assert make(mirror) is not None  # empty folders, as Snakemake makes them before a rule runs, are nothing


def test_a_link_to_nothing_is_named(mirror, tmp_path):
    (tmp_path / "project/data").mkdir()
    (tmp_path / "project/data/voc").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"not there, but data/voc is"):
        make(mirror)


def test_another_archive_than_the_published_one_is_refused(mirror, tmp_path):
    source = source_of(mirror)
    content = bytearray((mirror[0] / TEST).read_bytes())
    content[1000] ^= 1
    (mirror[0] / TEST).write_bytes(content)
    with pytest.raises(WorkError, match=rf"{TEST}: SHA-256 is .*, expected"):
        make_folder(read_archives(suite(BOTH)), source)
    assert left(tmp_path) == []


def test_an_archive_that_was_changed_here_is_not_replaced(mirror, tmp_path):
    kept = tmp_path / "project/data/archives/voc2007" / TEST
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    with pytest.raises(InputError, match=rf"{TEST}: its content is not that of source voc2007"):
        make(mirror)
    assert kept.read_text() == "mine"


def broken(path):
    """Cut it short within a picture."""
    with tarfile.open(path) as content:
        end = content.getmember(f"{ROOT}/JPEGImages/000003.jpg").offset_data + 100
    path.write_bytes(path.read_bytes()[:end])


def with_a_link(path):
    write_archive(path, VAL, "test", {f"{ROOT}/JPEGImages/9.jpg": (tarfile.SYMTYPE, "/etc/passwd")})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken, "broken: .*; remove it to fetch it again"),
        (lambda path: write_archive(path, VAL, "test", {"../escape.txt": b"no"}), "leads out of the folder: refused"),
        (
            lambda path: write_archive(
                path, VAL, "test", {f"{ROOT}/JPEGImages/9.jpg": (tarfile.SYMTYPE, "/etc/passwd")}
            ),
            "JPEGImages/9.jpg: a link or a device; expected a file: refused",
        ),
    ],
)
def test_an_archive_that_is_not_to_be_trusted_leaves_nothing(mirror, tmp_path, spoil, message):
    spoil(mirror[0] / TEST)
    with pytest.raises(WorkError, match=rf"{TEST}: .*{message}"):
        make(mirror)
    assert left(tmp_path) == []
    assert not list(tmp_path.rglob("escape.txt"))


def test_faults_in_the_archives_are_named_by_their_place_there(mirror, tmp_path):
    files = VAL | {"000006": (VAL["000006"][0], b"<annotation>")}
    write_archive(mirror[0] / TEST, files, "test")
    with pytest.raises(InputError) as caught:
        make(mirror)
    first, second = str(caught.value).splitlines()
    assert first == f"in {TRAINVAL}, {TEST}:"
    assert second.startswith(f"{ROOT}/Annotations/000006.xml: not valid XML: ")
    assert left(tmp_path) == []


def test_two_processes_do_not_fetch_the_same(mirror, tmp_path):
    store = tmp_path / "project/data/archives/voc2007"
    store.mkdir(parents=True)
    with (
        exclusive(store / ".lock", "not free"),
        pytest.raises(InputError, match="voc2007: another process is fetching; wait for it, or end it"),
    ):
        make(mirror)
    assert make(mirror) is not None


FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "socket.connect"}


def in_a_process(work, killed_at=None):
    """Run it in a forked process that kills itself at such an event on files; returns whether it came to its end."""
    process = os.fork()
    if process == 0:
        seen = 0

        def watch(event, _):
            nonlocal seen
            if event in FILE_EVENTS:
                seen += 1
                if seen == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.addaudithook(watch)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


def test_killed_at_any_moment_the_next_call_makes_the_same(mirror, tmp_path, monkeypatch):
    expected, moment, steps = None, 0, 0
    while True:
        place = tmp_path / f"killed{moment}"
        place.mkdir()
        monkeypatch.chdir(place)
        ended = in_a_process(lambda: make(mirror), killed_at=moment)
        if moment:
            assert in_a_process(lambda: make(mirror))
        made = everything(place / "data/voc")
        expected = expected or made
        assert made == expected
        assert sorted(path.name for path in (place / "data").iterdir()) == ["archives", "voc"]
        assert sorted(everything(place / "data/archives")) == [f"voc2007/{name}" for name in (".lock", TEST, TRAINVAL)]
        if moment and ended:
            break
        moment += 5
        steps += 1
    assert steps > 10
    assert len(expected) == 2 + 5
