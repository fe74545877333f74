"""One of several processes: ``python -m tests.doctor.two RED …``. Examines the suite ``tiny`` in the current folder.

Of the checks only the meeting is run, and one that is an error in the processes whose numbers are given.
"""

import sys

from tsd.doctor import examine, meeting
from tsd.doctor.checks import Check, Context
from tsd.engine.params import load_suite

RED = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]


def mood(context: Context) -> Check:
    """A check that finds what it is told to find."""
    red = context.here.rank in RED
    return Check("mood", "error" if red else "ok", "red" if red else "fine", "Cheer up: `true`." if red else "")


def only(one: meeting.Meeting) -> list[examine.Entry]:
    """The meeting, and the mood."""
    told = examine.Entry("mood", mood, "process", "")
    return [examine.Entry("processes", one.all_reduce, "process", ""), told]


if __name__ == "__main__":
    meeting.TIMEOUT = 30.0
    examine.entries = only
    sys.exit(examine.examine(load_suite("tiny"), as_json="--json" in sys.argv))
