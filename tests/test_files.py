"""Locks, of another process and of a file system that has none; what killed processes leave, and a disk refuses."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from tsd.errors import InputError
from tsd.files import atomic_path, exclusive, read_json, remove_leftovers, write_text


def test_who_comes_second_is_refused_and_who_comes_after_is_not(tmp_path):
    with (
        exclusive(tmp_path / ".lock", "taken"),
        pytest.raises(InputError, match="taken"),
        exclusive(tmp_path / ".lock", "taken"),
    ):
        pytest.fail("both hold it")
    with exclusive(tmp_path / ".lock", "taken"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_does_not_end_the_work(tmp_path, monkeypatch, capsys, code):
    def no_locks(*_):
        raise OSError(code, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with exclusive(tmp_path / ".lock", "another process is training"):
        done = True
    assert done
    assert "this file system has no locks (no locks available)" in capsys.readouterr().err


WRITE = """
import sys, time
from tsd.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def killed(tmp_path):
    """What a process left that was killed while it wrote ``a.json``."""
    writer = subprocess.Popen([sys.executable, "-c", WRITE, tmp_path / "a.json"], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"\n"
    (left,) = tmp_path.iterdir()
    remove_leftovers(tmp_path)
    assert left.exists()  # it is being written
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    return left


def test_what_a_killed_process_left_is_removed_by_the_next(killed, tmp_path):
    write_text(tmp_path / "b.json", "another file")
    assert killed.exists()
    write_text(tmp_path / "a.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_what_another_machine_left_is_removed_after_a_day(killed, tmp_path):
    here = killed.name.split(".")[-3]
    other = killed.rename(killed.with_name(killed.name.replace(here, "0000" if here != "0000" else "1111")))
    mine = tmp_path / ".a.tmp.json"
    mine.write_text("of no process")
    remove_leftovers(tmp_path)
    assert other.exists()
    os.utime(other, (0, time.time() - 100_000))
    remove_leftovers(tmp_path)
    assert not other.exists()
    assert mine.exists()


def test_an_error_of_the_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as error, atomic_path(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (error.value.filename, error.value.filename2) == (str(path), None)

    def refuse(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), source, None, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Read-only") as error:
        write_text(path, "new")
    assert (error.value.filename, error.value.filename2) == (str(path), None)
    with pytest.raises(OSError, match="reset") as error, atomic_path(path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert error.value.filename is None  # not of the disk
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5000, "\udcff"], ids=["brackets", "digits", "bytes"])
def test_odd_json_is_a_sentence(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"a\.json: not valid JSON: "):
        read_json(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match="is a device or a pipe; expected a JSON file"):
        read_json(tmp_path / "a.json")
