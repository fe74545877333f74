"""The command line whose standard output is closed, full, or read by nobody."""

import subprocess
import sys
from pathlib import Path

import pytest

VERB = """import sys
from tsd import cli
def verb(arguments):
    {}
cli._doctor = verb
sys.exit(cli.main(["doctor", "--suite", "tiny"]))"""


def run(code, shell, unbuffered=False):
    command = [sys.executable, *(["-u"] if unbuffered else []), "-c", VERB.format(code)]
    script = f'set -o pipefail; exec 3>&1; "$@" {shell}'
    return subprocess.run(["bash", "-c", script, "bash", *command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("code", ["print('line\\n' * 100000)", "[print(i, flush=True) for i in range(100000)]"])
def test_a_reader_that_leaves_ends_it_quietly(code, unbuffered):
    done = run(code, "| head -1", unbuffered)
    assert done.returncode == 141
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_the_help_may_be_left_too():
    command = [sys.executable, "-m", "tsd.cli", "--help"]
    done = subprocess.run(
        ["bash", "-c", '"$@" | true; echo ${PIPESTATUS[0]}', "bash", *command], capture_output=True, text=True
    )
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


def test_a_full_disk_behind_it_is_a_sentence():
    for code in ("print('line')", "print('line', flush=True)"):
        done = run(code, ">/dev/full")
        assert done.returncode == 1
        assert done.stderr == "standard output can't be written to: No space left on device\n"


def test_what_was_closed_is_not_missed(tmp_path):
    done = run(f"open({str(tmp_path / 'file')!r}, 'w').close(); print('line', flush=True); sys.stdout.isatty()", ">&-")
    assert done.returncode == 0
    assert done.stderr == ""
    assert Path(tmp_path, "file").read_text() == ""


def test_a_broken_pipe_elsewhere_is_told():
    done = run("raise BrokenPipeError(32, 'a worker is gone')", "")
    assert done.returncode == 1
    assert done.stderr.endswith("doctor failed: BrokenPipeError: [Errno 32] a worker is gone\n")
