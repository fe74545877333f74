"""Locks: of another process, and of a file system that has none."""

import errno
import fcntl

import pytest

from tsd.errors import InputError
from tsd.files import exclusive


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
