"""All checks, in their order: what is quick and what everything rests on first, reading the data last."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Literal

from tsd.doctor import environment, inputs, machine, places, pretrained, report, slurm, tracking
from tsd.doctor.checks import SETUP, Check, Context, sentence
from tsd.doctor.meeting import Meeting
from tsd.doctor.processes import who
from tsd.engine.params import Suite

Function = Callable[[Context], Check | list[Check]]


@dataclass(frozen=True)
class Entry:
    """A check, and where it runs when several processes were started.

    Attributes:
        name: for a line that says that it failed itself.
        function: the check.
        where: in each ``process``, in the first one of each ``node``, or in the first of the whole ``job``.
        remedy: if it raises.
    """

    name: str
    function: Function
    where: Literal["process", "node", "job"]
    remedy: str


def _operators(context: Context) -> list[Check]:
    from tsd.doctor.operators import operators

    return operators(context)


def _kernels(context: Context) -> list[Check]:
    from tsd.doctor.kernels import kernels

    return kernels(context)


def entries(meeting: Meeting) -> list[Entry]:
    """All checks."""
    return [
        Entry("Python", environment.python_version, "node", SETUP),
        Entry("packages", environment.packages, "node", SETUP),
        Entry("mmcv", environment.mmcv_operators, "node", SETUP),
        Entry("GPU", machine.gpus, "process", "See what the driver says: `nvidia-smi`."),
        Entry("operators", _operators, "process", SETUP),
        Entry("Triton", _kernels, "node", SETUP),
        Entry("processes", meeting.all_reduce, "process", "Start them by `srun` or `torchrun`."),
        Entry("locks", places.locks, "node", "See what is there: `ls -ld results`."),
        Entry("space", places.space, "job", "See it yourself: `df -h . results data`."),
        Entry("weights", pretrained.weights, "node", "See what is there: `ls -l $TSD_WEIGHTS`."),
        Entry("MLflow", tracking.mlflow, "node", "See what it says: `echo $MLFLOW_TRACKING_URI`."),
        Entry("Slurm", slurm.slurm, "job", "See what it says: `sinfo --summarize`."),
        Entry("data", inputs.data, "node", "See all that is wrong: `tsd data verify --suite NAME`."),
    ]


def examine(suite: Suite, *, quick: bool = False, as_json: bool = False) -> int:
    """Run all checks and print what they found; returns the exit status.

    With several processes the first prints all its lines, and then the warnings and errors of the others, each once.
    Who can't tell it prints its own.

    Args:
        suite: whose needs count.
        quick: look for files, and do not read them.
        as_json: print one JSON list instead, in the first process.

    Returns:
        0, or 1 if there is an error; in the first process also if any other has one.

    Raises:
        InputError: the variables of a launcher are no numbers.
    """
    started = time.monotonic()
    context, meeting = Context(suite, quick, who(os.environ)), Meeting()
    here = context.here
    with _clean_output(as_json):
        checks = []
        for check in run(context, entries(meeting)):
            checks.append(check)
            if here.is_first and not as_json:
                report.put(report.line(check, coloured=report.is_coloured(sys.stdout)))
        wrong = [check for check in checks if check.state != "ok"]
        others = meeting.exchange(context, wrong)
    named = {(rank, meeting.hosts[rank]): lines for rank, lines in others.items()}
    grouped = report.group(named)
    if here.is_first and as_json:
        report.put(report.as_json({(0, here.host): checks} | named))
    elif here.is_first:
        for check, processes in grouped.items():
            report.put(report.line(check, report.prefix(processes), report.is_coloured(sys.stdout)))
        report.put(report.summary([*checks, *grouped], time.monotonic() - started))
    elif not meeting.has_told:
        stream = sys.stderr if as_json else sys.stdout
        for check in wrong:
            report.put(report.line(check, report.prefix([(here.rank, here.host)]), report.is_coloured(stream)), stream)
    status = int(any(check.state == "error" for check in [*checks, *grouped]))
    if meeting.is_stuck:
        sys.stderr.flush()
        os._exit(status)  # a collective that does not come back can't be left in any other way
    return status


def run(context: Context, listed: list[Entry]) -> Iterator[Check]:
    """The lines of each check that runs in this process, as they are found; of one that raises, a line that says so."""
    here = context.here
    for entry in listed:
        if (entry.where == "job" and not here.is_first) or (entry.where == "node" and not here.is_first_of_node):
            continue
        try:
            found = entry.function(context)
        except Exception as error:
            found = Check(entry.name, "error", sentence(error), entry.remedy.replace("NAME", context.suite.name))
        yield from found if isinstance(found, list) else [found]


@contextmanager
def _clean_output(only_json: bool) -> Iterator[None]:
    """Send to standard error what libraries print, those written in C too: JSON is to be alone on standard output."""
    if not only_json:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
