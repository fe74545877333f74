"""A training in pieces: each job does what its time allows, and the next one goes on.

``pieces.jsonl`` in the run's folder has a line for each piece that was told to end: job, seconds that the job had left
when it began, steps done before and after it, and what ended it.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from tsd.engine import checkpoint, slurm
from tsd.errors import InputError, WorkError
from tsd.files import naming, read_whole_lines

FILE = "pieces.jsonl"


@dataclass(frozen=True)
class Piece:
    """A piece of a training, from its start on.

    Attributes:
        job: Slurm's number, None outside Slurm.
        host: of the first process.
        seconds: until the job's end when the piece started; None where that is not known or there is no end.
        start: steps done before it.
    """

    job: str | None
    host: str
    seconds: float | None
    start: int


def begin(folder: Path) -> Piece:
    """The piece that starts now.

    Raises:
        InputError: the last line of the file is no piece.
        WorkError: the one before was ended by the clock without having done a step, and this one has no more time.
    """
    job = slurm.job()
    seconds = slurm.seconds_left(job) if job else None
    piece = Piece(job, platform.node(), None if seconds == float("inf") else seconds, steps_done(folder))
    for last in read_whole_lines(folder / FILE)[-1:]:
        if not last.keys() >= {"by_clock", "start", "stop", "seconds"}:
            raise InputError(f"{folder / FILE}: its last line is no piece of a training; remove the line")
        stuck = last["by_clock"] and last["start"] == last["stop"] == piece.start
        known = piece.seconds is not None and last["seconds"] is not None
        if stuck and known and piece.seconds <= 1.1 * last["seconds"]:
            raise WorkError(_stuck(piece.start, last["seconds"]))
    return piece


def end(folder: Path, piece: Piece, reason: str, *, by_clock: bool) -> None:
    """Note the end of a piece whose last step is saved.

    Raises:
        WorkError: the clock ended the piece, and no step was done in it.
    """
    stop = steps_done(folder)
    line = {**asdict(piece), "stop": stop, "by_clock": by_clock, "reason": reason}
    with naming(folder / FILE), (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if stop == piece.start and by_clock:
        raise WorkError(_stuck(piece.start, piece.seconds))


def again(folder: Path, piece: Piece) -> str | None:
    """Start the job of a piece that has done a step again, if it is one of Snakemake's; Slurm then ends this process.

    Returns:
        What became of it; None where nothing is to be started again.
    """
    if piece.job is None or os.environ.get(slurm.AGAIN) != "1":
        return None
    if steps_done(folder) == piece.start:
        return f"job {piece.job} is not requeued: it has done no step"
    refused = slurm.requeue(piece.job)
    if refused:
        return f"job {piece.job} is not requeued ({refused}); the next attempt goes on from here"
    return f"job {piece.job} is requeued and goes on from here"


def steps_done(folder: Path) -> int:
    """Steps of the newest checkpoint."""
    return next(iter(checkpoint.steps(folder / "checkpoints")), (0, None))[0]


def _stuck(start: int, seconds: float | None) -> str:
    had = "" if seconds is None else f" that had {seconds / 60:.1f} minutes"
    return (
        f"no progress: a job{had} was to end before it had done a step after step "
        f"{start}; give it more time (resources.runtime of the suite, in minutes; `sinfo -o '%P %l'` says what a "
        "partition allows) or a smaller resources.margin"
    )
