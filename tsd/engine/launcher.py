"""``torchrun`` for a training: same options, same processes, but the sentence of the one that failed comes last.

``python -m tsd.engine.launcher OPTIONS -m tsd.cli train …``. By itself ``torchrun`` ends with a traceback of its own
and a table in which the sentence does not occur.
"""

import signal
import sys
from collections.abc import Iterable

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


def main(arguments: list[str] | None = None) -> int:
    """Start the processes and wait for them; returns the exit status of the one that failed first, 0 if none did."""
    try:
        run.run(run.parse_args(arguments))
    except ChildFailedError as error:
        first = first_failure(error.failures.values())
        print(sentence(first), file=sys.stderr)
        return first.exitcode if first.exitcode > 0 else 1
    except SignalException as stop:
        print(f"stopped by {signal.Signals(stop.sigval).name}", file=sys.stderr)
        return 1
    return 0


def first_failure(failures: Iterable[ProcessFailure]) -> ProcessFailure:
    """The cause of the others: bad input (status 2) before all else, for who waits for that process fails too."""
    return min(failures, key=lambda failure: (failure.exitcode != 2, failure.timestamp, failure.local_rank))


def sentence(failure: ProcessFailure) -> str:
    """What the process said of its end by :func:`tsd.engine.distributed.tell_launcher`, or what is known without."""
    content = failure.error_file_data.get("message")
    if isinstance(content, dict):
        return str(content["message"])
    if failure.exitcode < 0:
        return f"process {failure.pid} of the training was ended by {failure.signal_name()}"
    return f"process {failure.pid} of the training ended with status {failure.exitcode}; what it said stands above"


if __name__ == "__main__":
    sys.exit(main())
