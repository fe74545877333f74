"""Checks as lines to read, or as JSON."""

import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TextIO

from tsd.doctor.checks import Check

COLOURS = {"ok": "32", "warning": "33", "error": "31"}

NAMED = 8
"""Ranks or hosts in a line."""

Process = tuple[int, str]
"""Rank and host."""

_STATE, _NAME = 9, 15


def is_coloured(stream: TextIO) -> bool:
    """Whether the stream is a terminal that shows colours."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def line(check: Check, prefix: str = "", coloured: bool = False) -> str:
    """State, name and finding, and below it the remedy if there is one."""
    state = check.state.ljust(_STATE)
    if coloured:
        state = f"\x1b[{COLOURS[check.state]}m{state}\x1b[0m"
    text = f"{prefix}{state}{check.name.ljust(_NAME)}{check.finding}"
    return f"{text}\n{prefix}{' ' * _STATE}{check.remedy}" if check.remedy else text


def group(found: Mapping[Process, Sequence[Check]]) -> dict[Check, list[Process]]:
    """What several processes found → those that did, in their order."""
    grouped: dict[Check, list[Process]] = {}
    for process, checks in found.items():
        for check in checks:
            grouped.setdefault(check, []).append(process)
    return grouped


def prefix(processes: Sequence[Process]) -> str:
    """Who speaks, as ``ranks 1-7, 9 (node1, node2):``."""
    ranks = sorted({rank for rank, _ in processes})
    ends = [rank for rank in ranks if rank + 1 not in ranks]
    starts = [rank for rank in ranks if rank - 1 not in ranks]
    spans = [f"{start}" if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(spans)} ({names({host for _, host in processes})}): "


def names(hosts: Collection[str]) -> str:
    """The first of them in their order, and a sign that there are more."""
    return ", ".join(sorted(hosts)[:NAMED]) + (", …" if len(hosts) > NAMED else "")


def summary(checks: Iterable[Check], seconds: float) -> str:
    """How many warnings and errors."""
    states = [check.state for check in checks]
    counts = [(states.count("error"), "error"), (states.count("warning"), "warning")]
    found = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
    return f"{', '.join(found) or 'all is well'}; {seconds:.0f} s"


def as_json(found: Mapping[Process, Sequence[Check]]) -> str:
    """A list of objects: the checks of each (rank, host)."""
    return json.dumps(
        [asdict(check) | {"rank": rank, "host": host} for (rank, host), checks in found.items() for check in checks],
        indent=1,
    )


def put(text: str, stream: TextIO | None = None) -> None:
    """Print at once: a check after this one may take minutes."""
    print(text, file=stream or sys.stdout, flush=True)
