"""Manifests catch every change of the data; archives can't write where they should not."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from tsd.data.generate import SceneSpec, generate
from tsd.data.manifest import digest, folder_manifest, pinned_md5, read_manifest, unpack, verify
from tsd.errors import InputError


@pytest.fixture
def scenes(tmp_path) -> Path:
    out = tmp_path / "scenes"
    generate(SceneSpec.from_dict({"size": 40, "classes": 2, "train": 3, "val": 2, "object_size": [0.3, 0.5]}), out)
    return out


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_whole_data_has_no_problem(scenes):
    manifest = scenes / "manifest.json"
    assert verify(manifest, None) == []
    assert verify(manifest, hashlib.md5(manifest.read_bytes()).hexdigest()) == []


def test_one_changed_byte_of_a_picture_is_found(scenes):
    flip_a_byte(scenes / "train" / "000000000002.jpg")
    (problem,) = verify(scenes / "manifest.json", None)
    assert str(scenes / "train") in problem


def test_one_changed_byte_of_the_annotations_is_found(scenes):
    flip_a_byte(scenes / "annotations" / "instances_val.json")
    (problem,) = verify(scenes / "manifest.json", None)
    assert "instances_val.json" in problem


def test_missing_and_surplus_pictures_are_counted(scenes):
    (scenes / "train" / "000000000001.jpg").unlink()
    (scenes / "val" / "stray.jpg").write_bytes(b"")
    problems = verify(scenes / "manifest.json", None)
    assert [problem.split(": ", 1)[1] for problem in problems] == ["2 pictures, expected 3", "3 pictures, expected 2"]


def test_missing_files_are_named(scenes):
    (scenes / "annotations" / "instances_train.json").unlink()
    for picture in (scenes / "val").iterdir():
        picture.unlink()
    (scenes / "val").rmdir()
    problems = verify(scenes / "manifest.json", None)
    assert problems == [f"{scenes}/annotations/instances_train.json: missing", f"{scenes}/val: missing"]


def test_another_manifest_than_the_pinned_one_is_found(scenes):
    (problem,) = verify(scenes / "manifest.json", "0" * 32)
    assert "data.dvc pins 0000" in problem


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        verify(tmp_path / "manifest.json", "0" * 32)
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "absent.json")


def test_pictures_come_back_from_their_archive(scenes):
    for split in ("train", "val"):
        for picture in (scenes / split).iterdir():
            picture.unlink()
        (scenes / split).rmdir()
    unpack(scenes / "pictures.tar", scenes)
    assert verify(scenes / "manifest.json", None) == []
    assert not list(scenes.glob(".*"))


def test_the_archive_tells_nothing_of_who_made_it_when(scenes):
    with tarfile.open(scenes / "pictures.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def member(name: str, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside.jpg", size=4),
        member("train/../../outside.jpg", size=4),
        member("/tmp/outside.jpg", size=4),
        member("train/link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("train/link.jpg", type=tarfile.LNKTYPE, linkname="train/a.jpg"),
        member("train/pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path, bad):
    target = tmp_path / "deep" / "data"
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(member("train/a.jpg", size=4), io.BytesIO(b"good"))
        tar.addfile(bad, io.BytesIO(b"evil"))
    if bad.name.startswith("/"):
        # an absolute name is either refused or kept inside; it must never be followed
        try:
            unpack(tmp_path / "bad.tar", target)
        except InputError:
            assert not any(target.iterdir())
        assert not Path(bad.name).exists()
        return
    with pytest.raises(InputError, match=r"bad\.tar"):
        unpack(tmp_path / "bad.tar", target)
    assert not list(tmp_path.rglob("outside.jpg"))
    assert not target.exists() or not any(target.iterdir())


def test_a_truncated_or_missing_archive_is_refused_and_leaves_nothing(scenes, tmp_path):
    whole = (scenes / "pictures.tar").read_bytes()
    with tarfile.open(scenes / "pictures.tar") as tar:
        second = tar.getmembers()[1].offset
    for cut in (len(whole) // 3, second, second + 100, 100, 0):  # in a picture, between two, in a header
        (tmp_path / "half.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"half\.tar: truncated"):
            unpack(tmp_path / "half.tar", tmp_path / "target")
        assert not (tmp_path / "target").exists()
    with pytest.raises(InputError, match="no such file"):
        unpack(tmp_path / "absent.tar", tmp_path / "target")


def own_data(scenes: Path) -> list[tuple[Path, Path]]:
    return [(scenes / f"annotations/instances_{split}.json", scenes / split) for split in ("train", "val")]


def test_a_folder_of_ones_own_is_told_by_its_pictures_contents(scenes, tmp_path):
    quick = folder_manifest(*own_data(scenes))
    before = folder_manifest(*own_data(scenes), tmp_path)
    assert before["splits"]["train"]["images"]["count"] == 3
    (scenes / "train" / "unlisted.jpg").write_bytes(b"no matter")
    assert folder_manifest(*own_data(scenes), tmp_path) == before
    flip_a_byte(scenes / "train" / "000000000001.jpg")
    assert folder_manifest(*own_data(scenes)) == quick
    assert folder_manifest(*own_data(scenes), tmp_path) != before
    (scenes / "train" / "000000000001.jpg").write_bytes(b"shorter")
    assert folder_manifest(*own_data(scenes)) != quick


def test_pictures_that_are_swapped_are_other_data(scenes, tmp_path):
    one, two = (scenes / "train" / f"00000000000{number}.jpg" for number in (1, 2))
    one.write_bytes(b"x" * 10)
    two.write_bytes(b"y" * 10)
    before = folder_manifest(*own_data(scenes), tmp_path)
    one.rename(scenes / "other.jpg")
    two.rename(one)
    (scenes / "other.jpg").rename(two)
    assert folder_manifest(*own_data(scenes)) == folder_manifest(*own_data(scenes))
    assert folder_manifest(*own_data(scenes), tmp_path) != before


def aged(folder: Path) -> None:
    """As pictures are that nobody has just written."""
    for path in folder.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))


def test_a_picture_is_read_once(scenes, tmp_path, monkeypatch):
    from tsd.data import contents

    aged(scenes)
    monkeypatch.setattr(contents, "SETTLED", 0.0)
    first = folder_manifest(*own_data(scenes), tmp_path)
    read = []
    monkeypatch.setattr(contents, "digest", lambda path: read.append(path.name) or digest(path))
    assert folder_manifest(*own_data(scenes), tmp_path) == first
    assert read == []
    os.utime(scenes / "train" / "000000000002.jpg", (1.1e9, 1.1e9))
    assert folder_manifest(*own_data(scenes), tmp_path) == first
    assert read == ["000000000002.jpg"]
    memory = tmp_path / "pictures_train.csv"
    lines = memory.read_text().splitlines()
    for damage in ("", "a,b\n", "\x00", lines[0], "\n".join(line[:-1] for line in lines)):
        memory.write_text(damage)
        assert folder_manifest(*own_data(scenes), tmp_path) == first
    assert len(memory.read_text().splitlines()) == 3


def test_a_picture_of_the_same_size_and_time_is_read_again(scenes, tmp_path):
    """As one that `cp -p` puts there from an archive whose files all have one time."""
    aged(scenes)
    before = folder_manifest(*own_data(scenes), tmp_path)
    path = scenes / "train" / "000000000001.jpg"
    flip_a_byte(path)
    os.utime(path, (1e9, 1e9))
    assert folder_manifest(*own_data(scenes), tmp_path) != before


def test_what_was_written_just_now_is_not_remembered(scenes, tmp_path):
    """It may be written again within one tick of the file system's clock."""
    aged(scenes)
    path = scenes / "train" / "000000000001.jpg"
    path.write_bytes(path.read_bytes())
    folder_manifest(*own_data(scenes), tmp_path)
    assert path.name not in (tmp_path / "pictures_train.csv").read_text()


def test_a_memory_that_cant_be_written_is_said(scenes, tmp_path, capsys, monkeypatch):
    from tsd.data import contents

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    before = folder_manifest(*own_data(scenes), tmp_path / "here")
    monkeypatch.setattr(contents, "write_text", refuse)
    assert folder_manifest(*own_data(scenes), tmp_path / "there") == before
    assert "pictures_train.csv: can't be written (Read-only file system): the pictures" in capsys.readouterr().err


def test_a_folder_of_ones_own_must_be_whole(scenes):
    (scenes / "val" / "000000000002.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000002\.jpg"):
        folder_manifest(*own_data(scenes))
    (scenes / "annotations" / "instances_train.json").write_text('{"images": [{}]}')
    with pytest.raises(InputError, match=r"instances_train\.json: not COCO"):
        folder_manifest(*own_data(scenes))


def test_the_pin_is_read_from_a_dvc_file(tmp_path):
    dvc = tmp_path / "data.dvc"
    md5 = "0123abcd" * 4
    entry = f"- md5: {md5}\n  size: 5\n  hash: md5\n  path: data/a.json\n"
    dvc.write_text(f"outs:\n{entry}")
    assert pinned_md5(dvc, "data/a.json") == md5
    assert pinned_md5(dvc, "data/b.json") is None
    dvc.write_text("outs: []")
    assert pinned_md5(dvc, "data/a.json") is None
    dvc.write_text(f"outs:\n{entry}{entry}")
    with pytest.raises(InputError, match="listed twice"):
        pinned_md5(dvc, "data/a.json")


@pytest.mark.parametrize(
    "text", [None, "", "outs:", "outs: [", "- 1", "outs: {a: 1}", "outs: [1]", "outs: [{md5: 1}]", "\x00"]
)
def test_a_pin_that_cant_be_read_is_no_pin_that_is_not_there(tmp_path, text):
    dvc = tmp_path / "data.dvc"
    if text is not None:
        dvc.write_text(text)
    with pytest.raises(InputError, match=r"(?s)data\.dvc: .*pins the data.*git checkout"):
        pinned_md5(dvc, "data/a.json")


@pytest.mark.parametrize("md5", ["", "md5: null,", "md5: 12,", "md5: xyz,"])
def test_a_pin_without_its_digest_is_an_error(tmp_path, md5):
    dvc = tmp_path / "data.dvc"
    dvc.write_text(f"outs: [{{{md5} path: data/a.json}}]")
    with pytest.raises(InputError, match=r"data\.dvc: outs: md5 of data/a\.json: expected 32"):
        pinned_md5(dvc, "data/a.json")
