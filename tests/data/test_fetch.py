"""Pictures and files of a data set: resumed, checked, never replaced by anything else."""

import io
import json
import tarfile
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from tests.data.test_transfer import QUICK, Faulty
from tsd.data import fetch, pictures
from tsd.data.manifest import digest
from tsd.data.serve import served
from tsd.data.sources import Source, SourceFile, load_source
from tsd.data.transfer import get
from tsd.errors import InputError, ParamsError, WorkError


def jpeg(seed, mode="RGB", orientation=None, size=(20, 30)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels.squeeze(2) if len(mode) == 1 else pixels, mode).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def several_frames():
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (0, 99)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


KEYS = [("train", f"{number:016x}") for number in range(12)]


@pytest.fixture
def bucket(tmp_path):
    """A bucket of twelve pictures, and what fetches from it."""
    folder = tmp_path / "bucket"
    for number, (split, name) in enumerate(KEYS):
        path = folder / split / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))

    class Own(Faulty):
        script: ClassVar[list[str]] = []
        seen: ClassVar[list[tuple[str, str]]] = []

    with served({"bucket": folder}, Own) as url:
        source = Source("test", f"{url}/bucket/", (), f"{url}/bucket/", {}, 1000)
        yield source, Own, folder


def run(bucket, out, keys=KEYS, **options):
    return fetch.fetch_pictures(bucket[0], out, keys, threads=3, policy=QUICK, **options)


def test_pictures_come_with_a_record(bucket, tmp_path, capfd):
    bucket[1].script += ["500", "hang", "cut", "429"]
    summary = run(bucket, tmp_path / "out")
    assert summary["pictures"] == {"train": 12}
    table = pictures.read_pictures(tmp_path / "out/pictures.parquet").to_pylist()
    assert [(row["split"], row["id"]) for row in table] == KEYS
    assert {(row["width"], row["height"], row["mode"], row["frames"]) for row in table} == {(30, 20, "RGB", 1)}
    for row in table:
        assert row["sha256"] == digest(tmp_path / "out/train" / f"{row['id']}.jpg")
    assert "12 of 12 pictures to fetch, about 0.00 GB" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pictures.json", "pictures.parquet", "train"]
    assert pictures.verify_pictures(tmp_path / "out", KEYS, contents=True) == []


def test_what_is_whole_is_not_fetched_again(bucket, tmp_path):
    first = run(bucket, tmp_path / "out", KEYS[:5])
    assert first["pictures"] == {"train": 5}
    bucket[1].seen.clear()
    (tmp_path / "out/train" / f"{KEYS[0][1]}.jpg").write_bytes(b"half")
    whole = run(bucket, tmp_path / "out")
    assert len(bucket[1].seen) == 12 - 4
    assert whole == run(bucket, tmp_path / "other")
    bucket[1].seen.clear()
    assert run(bucket, tmp_path / "out") == whole
    assert bucket[1].seen == []


def test_a_killed_fetch_goes_on_from_its_journal(bucket, tmp_path):
    """As after kill -9: no record was written, and the journal's last line is cut."""
    calls = []

    def dies(url, policy):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(url)
        return get(url, policy=policy)

    store = pictures.PictureStore(tmp_path / "out")
    for key in KEYS[:6]:
        store.add(key, dies(f"{bucket[0].pictures_url}{key[0]}/{key[1]}.jpg", QUICK))
    with (tmp_path / "out" / pictures.JOURNAL).open("a") as file:
        file.write('{"split": "train", "id": "0000')
    bucket[1].seen.clear()
    summary = run(bucket, tmp_path / "out")
    assert len(bucket[1].seen) == 6
    assert summary == run(bucket, tmp_path / "other")


def test_missing_pictures_are_listed_and_the_others_kept(bucket, tmp_path):
    (bucket[2] / "train" / f"{KEYS[3][1]}.jpg").unlink()
    (bucket[2] / "train" / f"{KEYS[7][1]}.jpg").write_bytes(b"no picture")
    whole = jpeg(9)
    (bucket[2] / "train" / f"{KEYS[9][1]}.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkError, match=r"failures.csv: 3 of 12 pictures could not be had, first train/0{15}3: .*404"):
        run(bucket, tmp_path / "out")
    lines = (tmp_path / "out/failures.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == [KEYS[3][1], KEYS[7][1], KEYS[9][1]]
    assert "can't be decoded" in lines[2]
    assert len(list((tmp_path / "out/train").iterdir())) == 9
    problems = pictures.verify_pictures(tmp_path / "out", KEYS)
    assert problems == [f"{tmp_path / 'out'}: 3 pictures are not there, first train/{KEYS[3][1]}"]
    for number in (3, 7, 9):
        (bucket[2] / "train" / f"{KEYS[number][1]}.jpg").write_bytes(jpeg(number))
    run(bucket, tmp_path / "out")
    assert not (tmp_path / "out/failures.csv").exists()


def put(bucket, name, content):
    (bucket[2] / "train" / f"{name}.jpg").write_bytes(content)


def test_a_placeholder_for_all_is_refused_and_what_was_there_stays(bucket, tmp_path):
    run(bucket, tmp_path / "out", KEYS[:2])
    for _, name in KEYS[2:]:
        put(bucket, name, jpeg(99))
    said = r"failures.csv: 10 of 12 pictures .*: a placeholder: 10 ids have the content of SHA-256 [0-9a-f]{64}"
    with pytest.raises(WorkError, match=said):
        run(bucket, tmp_path / "out")
    lines = (tmp_path / "out/failures.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in lines] == [name for _, name in KEYS[2:]]
    assert len(list((tmp_path / "out/train").iterdir())) == 2
    assert pictures.read_pictures(tmp_path / "out/pictures.parquet").num_rows == 2
    for number, (_, name) in enumerate(KEYS):
        put(bucket, name, jpeg(number))
    assert run(bucket, tmp_path / "out")["pictures"] == {"train": 12}


def test_a_placeholder_is_found_among_many(tmp_path):
    """The store of a large fetch: 20 of 400 pictures; a few true duplicates pass."""
    for number, refused in ((fetch.SAME, fetch.SAME), (fetch.SAME - 1, 0)):
        store = pictures.PictureStore(tmp_path / str(number))
        for key in range(400):
            record = {"sha256": "same" if key < number else f"{key}"}
            store.records["train", f"{key}"] = record
            store.path(("train", f"{key}")).parent.mkdir(parents=True, exist_ok=True)
            store.path(("train", f"{key}")).touch()
        assert len(fetch._remove_placeholders(store)) == refused
        assert len(store.records) == len(list((tmp_path / str(number) / "train").iterdir())) == 400 - refused


def test_twins_are_kept(bucket, tmp_path):
    put(bucket, KEYS[1][1], jpeg(0))
    assert run(bucket, tmp_path / "out")["pictures"] == {"train": 12}


def test_a_placeholder_in_an_archive_is_refused(bucket, tmp_path):
    shard(bucket[2] / "tar/train_0.tar.gz", [(f"train_0/{name}.jpg", jpeg(0)) for _, name in KEYS])
    with pytest.raises(WorkError, match=r"12 of 12 pictures .*: a placeholder: 12 ids have the content of SHA-256"):
        fetch.fetch_shards(bucket[0], tmp_path / "out", [("train", "train_0")], KEYS, policy=QUICK)
    assert list((tmp_path / "out/train").iterdir()) == []


@pytest.mark.parametrize("size", [(1, 1), (7, 30)])
def test_a_picture_of_next_to_no_pixels_is_refused(bucket, tmp_path, size):
    put(bucket, KEYS[4][1], jpeg(0, size=size))
    said = rf"1 of 12 pictures .*: a placeholder of {size[1]} x {size[0]} pixels, expected at least 8 x 8"
    with pytest.raises(WorkError, match=said):
        run(bucket, tmp_path / "out")


def test_odd_pictures_are_kept_and_counted(bucket, tmp_path):
    odd = {0: jpeg(0, "L"), 1: jpeg(1, "CMYK"), 2: several_frames(), 3: jpeg(3, orientation=6)}
    for number, content in odd.items():
        (bucket[2] / "train" / f"{KEYS[number][1]}.jpg").write_bytes(content)
    summary = run(bucket, tmp_path / "out", KEYS[:5])
    assert summary["modes"] == {"L": 1, "CMYK": 1, "RGB": 3}
    assert summary["with_several_frames"] == 1
    assert summary["with_orientation"] == 1
    row = pictures.read_pictures(tmp_path / "out/pictures.parquet").to_pylist()[3]
    assert (row["width"], row["height"], row["orientation"]) == (30, 20, 6)  # as stored, which boxes follow


def test_a_full_disk_ends_it_and_keeps_what_came(bucket, tmp_path, monkeypatch):
    real = pictures.PictureStore.add

    def add(self, key, content):
        if len(self.records) >= 5:
            raise OSError(28, "No space left on device")
        real(self, key, content)

    monkeypatch.setattr(pictures.PictureStore, "add", add)
    with pytest.raises(WorkError, match=r"not written: .*No space left on device; what has come stays"):
        run(bucket, tmp_path / "out")
    monkeypatch.undo()
    kept = pictures.read_pictures(tmp_path / "out/pictures.parquet").num_rows
    assert 5 <= kept < 12
    assert run(bucket, tmp_path / "out")["pictures"] == {"train": 12}


def test_too_little_space_is_said_before_the_start(bucket, tmp_path):
    from dataclasses import replace

    source = replace(bucket[0], picture_bytes=10**15)
    with pytest.raises(InputError, match=r"GB are needed, .* GB are free"):
        fetch.fetch_pictures(source, tmp_path / "out", KEYS)
    assert bucket[1].seen == []


@pytest.mark.parametrize("name", ["../a", "a/b", "", "a b"])
def test_an_id_that_is_no_file_name_is_refused(bucket, tmp_path, name):
    with pytest.raises(InputError, match="not a picture's id"):
        run(bucket, tmp_path / "out", [("train", name)])


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_pictures_come_by_archive_too(bucket, tmp_path):
    shard(bucket[2] / "tar/train_0.tar.gz", [(f"train_0/{name}.jpg", jpeg(i)) for i, (_, name) in enumerate(KEYS[:8])])
    shard(
        bucket[2] / "tar/train_1.tar.gz", [(f"train_1/{name}.jpg", jpeg(8 + i)) for i, (_, name) in enumerate(KEYS[8:])]
    )
    shards = [("train", "train_0"), ("train", "train_1")]
    bucket[1].script += ["cut", "500"]
    summary = fetch.fetch_shards(bucket[0], tmp_path / "out", shards, KEYS[2:], policy=QUICK)
    assert summary["pictures"] == {"train": 10}
    assert pictures.verify_pictures(tmp_path / "out", KEYS[2:], contents=True) == []
    assert summary == run(bucket, tmp_path / "other", KEYS[2:])
    assert list((tmp_path / "out/tar").iterdir()) == []
    with pytest.raises(WorkError, match=r"1 of 1 pictures could not be had, first train/ffff: in none of the archives"):
        fetch.fetch_shards(bucket[0], tmp_path / "out", shards, [("train", "ffff")], policy=QUICK)


@pytest.mark.parametrize("name", ["../escape.jpg", "train_0/../../escape.jpg", "/abs.jpg", "train_0/link.jpg", "x.txt"])
def test_an_archive_with_anything_but_pictures_is_refused(bucket, tmp_path, name):
    shard(bucket[2] / "tar/train_0.tar.gz", [(name, None if "link" in name else jpeg(0))])
    with pytest.raises(WorkError, match="not a picture of the data set: refused"):
        fetch.fetch_shards(bucket[0], tmp_path / "out", [("train", "train_0")], KEYS, policy=QUICK)
    assert not list(tmp_path.rglob("escape.jpg"))


def test_a_picture_of_an_archive_is_not_read_if_it_is_too_long(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MOST", 5000)
    contents = [(f"train_0/{KEYS[0][1]}.jpg", jpeg(0)), (f"train_0/{KEYS[1][1]}.jpg", jpeg(1) + bytes(5000))]
    shard(bucket[2] / "tar/train_0.tar.gz", contents)
    with pytest.raises(WorkError, match=rf"1 of 2 .*, first train/{KEYS[1][1]}: \d+ bytes, expected at most 5000"):
        fetch.fetch_shards(bucket[0], tmp_path / "out", [("train", "train_0")], KEYS[:2], policy=QUICK)


def test_a_broken_archive_is_named_and_its_whole_pictures_kept(bucket, tmp_path):
    path = bucket[2] / "tar/train_0.tar.gz"
    shard(path, [(f"train_0/{name}.jpg", jpeg(i)) for i, (_, name) in enumerate(KEYS)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(WorkError, match=r"train_0.tar.gz: broken: .*remove it to fetch it again"):
        fetch.fetch_shards(bucket[0], tmp_path / "out", [("train", "train_0")], KEYS, policy=QUICK)
    assert 0 < pictures.read_pictures(tmp_path / "out/pictures.parquet").num_rows < 12


def test_files_are_checked_by_digest_and_never_replaced(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "a.csv").write_text("some,rows\n")
    with served({"s": folder}) as url:
        file = SourceFile("a.csv", 10, digest(folder / "a.csv"))
        source = Source("s", f"{url}/s/", (file,), None, {})
        assert fetch.fetch_files(source, tmp_path / "out")[0].read_text() == "some,rows\n"
        (tmp_path / "out/a.csv").write_text("some,rowz\n")
        with pytest.raises(InputError, match=r"a.csv: its content is not that of source s"):
            fetch.fetch_files(source, tmp_path / "out")
        assert (tmp_path / "out/a.csv").read_text() == "some,rowz\n"


def test_a_record_that_was_changed_is_found(bucket, tmp_path):
    run(bucket, tmp_path / "out", KEYS[:2])
    summary = json.loads((tmp_path / "out/pictures.json").read_text())
    (tmp_path / "out/pictures.json").write_text(json.dumps(summary | {"bytes": 1}))
    assert "differs from pictures.json" in pictures.verify_pictures(tmp_path / "out", [])[0]
    (tmp_path / "out/pictures.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"pictures.parquet: not a record of pictures"):
        pictures.verify_pictures(tmp_path / "out", [])


def test_the_published_sources_are_well_formed_and_can_be_mirrored(monkeypatch):
    monkeypatch.delenv("TSD_MIRROR", raising=False)
    source = load_source("openimages")
    assert len(source.files) == 6
    assert all(len(file.sha256) == 64 for file in source.files)
    assert source.pictures == {"train": 1674979, "validation": 34917}
    archives = {file.path: (file.bytes, len(file.sha256)) for file in load_source("voc2007").files}
    assert archives == {
        "VOCtrainval_06-Nov-2007.tar": (460032000, 64),
        "VOCtest_06-Nov-2007.tar": (451020800, 64),
    }
    monkeypatch.setenv("TSD_MIRROR", "http://127.0.0.1:8/m/")
    assert load_source("coco").files_url == "http://127.0.0.1:8/m/coco/"
    with pytest.raises(ParamsError, match=r"no source 'voc'; there are: coco, voc2007, openimages"):
        load_source("voc")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("s: {files: []}", "s.files_url: missing key"),
        ("s: {files_url: x, files: [], extra: 1}", "s.extra: unknown key"),
        ("s: {files_url: 3, files: []}", "s.files_url: expected str, got 3"),
        ("s: {files_url: x, files: [{path: a}]}", "s.files.0: expected the keys path, bytes and sha256"),
        (f"s: {{files_url: x, files: [{{path: ../a, bytes: 1, sha256: {'b' * 64}}}]}}", "leads out of the folder"),
        ("s: {files_url: x, files: [{path: a, bytes: '1', sha256: b}]}", "s.files.0.bytes: expected int"),
        ("s: 3", "s: expected a mapping"),
    ],
)
def test_a_bad_source_is_named(tmp_path, entry, message):
    (tmp_path / "params").mkdir()
    (tmp_path / "params/sources.yaml").write_text(entry)
    with pytest.raises(ParamsError, match=message):
        load_source("s", tmp_path)
