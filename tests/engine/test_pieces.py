"""Trainings in pieces, as the time limits of Slurm's jobs cut them; `squeue` and `scontrol` are small programs here."""

import json
import os
import signal
import time

import pytest

from tsd.engine import pieces, slurm, stopping
from tsd.errors import InputError, WorkError
from tsd.files import read_whole_lines


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A job with 10 minutes left; returns what is asked of Slurm, and a way to change what it answers."""
    programs = tmp_path / "bin"
    programs.mkdir()
    asked = tmp_path / "asked"

    def answer(left="10:00", state="RUNNING", requeue="exit 0"):
        squeue = f'case "$5" in %L) echo {left};; %T) echo {state};; esac'
        for name, line in (("squeue", squeue), ("scontrol", requeue)):
            (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {asked}\n{line}\n')
            (programs / name).chmod(0o755)

    answer()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv(slurm.AGAIN, "1")
    return asked, answer


@pytest.fixture
def folder(tmp_path):
    """A run's folder."""
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    return path


def save(folder, step):
    (folder / "checkpoints" / f"step_{step:08d}.pth").touch()


@pytest.mark.parametrize(
    ("printed", "seconds"),
    [("0:45", 45), ("1:02:03", 3723), ("1-00:00:01", 86401), ("UNLIMITED", float("inf")), ("NOT_SET", None)],
)
def test_the_time_left_is_what_squeue_prints(cluster, printed, seconds):
    cluster[1](left=printed)
    assert slurm.seconds_left("42") == (seconds and pytest.approx(seconds))
    assert cluster[0].read_text() == "squeue -h -j 42 -o %L\n"


def test_a_slurm_that_does_not_answer_is_no_limit(cluster, monkeypatch):
    cluster[1](left='"" >&2; exit 1')
    assert slurm.seconds_left("42") is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm.seconds_left("42") is None
    assert "unknown" in slurm.requeue("42")


def test_a_piece_that_did_a_step_starts_its_job_again(cluster, folder):
    save(folder, 4)
    piece = pieces.begin(folder)
    assert (piece.job, piece.seconds, piece.start) == ("42", 600, 4)
    save(folder, 5)
    pieces.end(folder, piece, "the clock", by_clock=True)
    assert pieces.again(folder, piece) == "job 42 is requeued and goes on from here"
    assert "scontrol requeue 42" in cluster[0].read_text()
    (line,) = read_whole_lines(folder / "pieces.jsonl")
    assert (line["start"], line["stop"], line["by_clock"], line["reason"]) == (4, 5, True, "the clock")
    assert pieces.begin(folder).start == 5


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_job_that_is_ending_or_was_cancelled_is_left_alone(cluster, folder, state):
    cluster[1](state=state)
    piece = pieces.begin(folder)
    save(folder, 1)
    assert f"is not requeued (its state is {state}); the next attempt goes on" in pieces.again(folder, piece)
    assert "scontrol" not in cluster[0].read_text()


def test_a_refusal_is_told_and_left_to_the_next_attempt(cluster, folder):
    cluster[1](requeue='echo "Requested operation is presently disabled" >&2; exit 1')
    piece = pieces.begin(folder)
    save(folder, 1)
    assert "(Requested operation is presently disabled); the next attempt goes on" in pieces.again(folder, piece)


def test_only_a_job_of_snakemakes_is_started_again(cluster, folder, monkeypatch):
    monkeypatch.delenv(slurm.AGAIN)
    piece = pieces.begin(folder)
    save(folder, 1)
    assert pieces.again(folder, piece) is None
    assert "scontrol" not in cluster[0].read_text()


def test_no_progress_by_the_clock_fails_and_so_do_attempts_with_no_more_time(cluster, folder):
    save(folder, 7)
    first = pieces.begin(folder)
    with pytest.raises(
        WorkError, match=r"a job that had 10\.0 minutes was to end before it had done a step after step 7"
    ):
        pieces.end(folder, first, "the clock", by_clock=True)
    with pytest.raises(WorkError, match=r"resources\.runtime of the suite, in minutes"):
        pieces.begin(folder)
    cluster[1](left="1:00:00")
    assert pieces.begin(folder).start == 7  # more time: it is tried


def test_a_piece_whose_time_nobody_knew_does_not_stop_the_next(cluster, folder):
    """Slurm does not answer at the start, and says later that little is left."""
    cluster[1](left='"" >&2; exit 1')
    piece = pieces.begin(folder)
    with pytest.raises(WorkError, match="no progress: a job was to end before it had done a step after step 0"):
        pieces.end(folder, piece, "the clock", by_clock=True)
    cluster[1](left="10:00:00")
    assert pieces.begin(folder).seconds == 36000


def test_a_line_that_is_no_piece_is_named(cluster, folder):
    (folder / pieces.FILE).write_text('{"job": "1"}\n')
    with pytest.raises(InputError, match="its last line is no piece of a training; remove the line"):
        pieces.begin(folder)


def test_a_preemption_before_the_first_step_is_no_failure_and_no_reason_to_start_the_job_again(cluster, folder):
    piece = pieces.begin(folder)
    pieces.end(folder, piece, "signal SIGTERM", by_clock=False)
    assert pieces.again(folder, piece) == "job 42 is not requeued: it has done no step"
    assert pieces.begin(folder).start == 0


def test_outside_slurm_there_is_no_clock_and_nothing_to_start_again(folder, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    piece = pieces.begin(folder)
    assert piece.seconds is None
    assert pieces.again(folder, piece) is None


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_clock_asks_again_and_then_asks_to_stop(monkeypatch):
    monkeypatch.setattr(stopping, "ASK_SECONDS", 0.05)
    answers = [1000.0, None, 1000.0, 59.0]
    with stopping.listening() as request, stopping.by_the_clock(request, lambda: answers.pop(0), margin=60):
        request.heard = True
        until(lambda: request.reason)
        assert request.reason == "the clock, 1 min before the job's time is over"
        assert answers == []


def test_the_clock_ends_what_has_not_begun():
    with (
        pytest.raises(SystemExit, match="stopped by the clock, 1 min before"),
        stopping.listening() as request,
        stopping.by_the_clock(request, lambda: 10.0, margin=60),
    ):
        until(lambda: False)


def test_a_clock_that_is_not_needed_any_more_sends_no_signal():
    got = []
    old = signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    try:
        with stopping.by_the_clock(stopping.StopRequest(), lambda: 60.2, margin=60):
            pass
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert got == []


def test_a_line_that_was_being_written_is_no_piece(cluster, folder):
    (folder / "pieces.jsonl").write_text(json.dumps({"start": 0})[:5])
    assert pieces.begin(folder).start == 0
