"""Archives that hold more than they should, and broken ones."""

import tarfile
import zipfile

import pytest

from tests.voc_kit import write_tar
from tsd.data.unpack import untar, unzip
from tsd.errors import WorkError


def everything(name):
    return True


def test_a_zip_stays_in_its_folder(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("train2017/1.jpg", b"one")
        content.writestr("train2017/2.jpg", b"two")
    assert unzip(archive, tmp_path / "out", everything) == 2
    (tmp_path / "out/train2017/1.jpg").unlink()
    assert unzip(archive, tmp_path / "out", everything) == 2
    assert (tmp_path / "out/train2017/1.jpg").read_bytes() == b"one"
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr("../escape.jpg", b"no")
    with pytest.raises(WorkError, match=r"../escape.jpg: leads out of the folder"):
        unzip(archive, tmp_path / "out", everything)
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(WorkError, match="broken"):
        unzip(archive, tmp_path / "out", everything)


def _damaged(content: bytes) -> bytes:
    """The deflated data of the first member is no longer what it was."""
    return content[:60] + b"\xff" * 30 + content[90:]


def _encrypted(content: bytes) -> bytes:
    """The flag in the list of members says that a password is needed."""
    place = content.index(b"PK\x01\x02") + 8
    return content[:place] + b"\x01" + content[place + 1 :]


def _of_unknown_method(content: bytes) -> bytes:
    place = content.index(b"PK\x01\x02") + 10
    return content[:place] + b"\x63" + content[place + 1 :]


@pytest.mark.parametrize("change", [_damaged, _encrypted, _of_unknown_method])
def test_a_zip_that_cannot_be_read_is_named(tmp_path, change):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("1.jpg", bytes(range(256)) * 20)
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(WorkError, match=r"a\.zip: broken: .*; remove it to fetch it again"):
        unzip(archive, tmp_path / "out", everything)


def test_a_zip_with_a_file_twice_or_a_link_is_refused(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("1.jpg", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            content.writestr("1.jpg", b"two")
    with pytest.raises(WorkError, match="a file is in it twice"):
        unzip(archive, tmp_path / "out", everything)
    link = zipfile.ZipInfo("1.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(link, "/etc/passwd")
    with pytest.raises(WorkError, match=r"1\.jpg: a link; expected a file"):
        unzip(archive, tmp_path / "out", everything)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_the_wanted_files_of_a_tar_are_unpacked(tmp_path, mode):
    members = {"kit": (tarfile.DIRTYPE, ""), "kit/a.txt": b"one", "./kit/deep/b.txt": b"two", "other/c.txt": b"three"}
    archive = write_tar(tmp_path / "a.tar", members, mode)
    assert untar(archive, tmp_path / "out", lambda name: "kit/" in name) == 2
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*.txt")}
    assert {name: path.read_bytes() for name, path in found.items()} == {"kit/a.txt": b"one", "kit/deep/b.txt": b"two"}


@pytest.mark.parametrize("name", ["../escape.txt", "kit/../../escape.txt", "/escape.txt"])
def test_a_tar_with_a_member_that_leads_out_is_refused_whole(tmp_path, name):
    archive = write_tar(tmp_path / "a.tar", {"kit/a.txt": b"one", name: b"no"})
    with pytest.raises(WorkError, match=r"escape.txt: leads out of the folder: refused"):
        untar(archive, tmp_path / "out", lambda name: name.startswith("kit/a"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_wanted_member_that_is_no_file_is_refused(tmp_path, kind):
    archive = write_tar(
        tmp_path / "a.tar", {"kit/a.txt": b"one", "kit/b.txt": (kind, "kit/a.txt"), "c": (kind, "kit/a.txt")}
    )
    with pytest.raises(WorkError, match=r"a.tar: kit/b.txt: a link or a device; expected a file: refused"):
        untar(archive, tmp_path / "out", everything)
    assert not (tmp_path / "out").exists()
    assert untar(archive, tmp_path / "out", lambda name: name.endswith("a.txt")) == 1


@pytest.mark.parametrize(("mode", "kept"), [("w", 0.6), ("w:gz", 0.6), ("w", 0.0), ("w", 0.005)])
def test_a_broken_tar_is_named(tmp_path, mode, kept):
    archive = write_tar(tmp_path / "a.tar", {f"kit/{number}.txt": bytes(range(256)) * 80 for number in range(5)}, mode)
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(WorkError, match=r"a.tar: broken: .*; remove it to fetch it again"):
        untar(archive, tmp_path / "out", everything)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    archive = write_tar(tmp_path / "a.tar", {"kit/a.txt": b"one"})
    (tmp_path / "out").write_text("a file")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
        content.writestr("kit/a.txt", b"one")
    with pytest.raises(WorkError, match=r"a.zip: can't be unpacked to .*out: .*; what is unpacked stays"):
        unzip(tmp_path / "a.zip", tmp_path / "out", everything)
    with pytest.raises(WorkError, match=r"a.tar: can't be unpacked to .*out: "):
        untar(archive, tmp_path / "out", everything)
