"""Ending a training when a scheduler asks for it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill: at a time limit, at preemption."""


@dataclass
class StopRequest:
    """What asked a training to end, if anything has, and whether the training looks at it."""

    reason: str | None = None
    heard: bool = False


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn a scheduler's signals into a request to stop after the step that is being done.

    A signal before the first step ends the process at once; a further one changes nothing: a launcher repeats them.
    """
    request = StopRequest()

    def stop(number: int, _: Any) -> None:
        reason = f"signal {signal.Signals(number).name}"
        if request.reason is None and not request.heard:
            raise SystemExit(f"stopped by {reason}")
        request.reason = request.reason or reason

    old = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def obey_only_the_parent() -> None:
    """In a process that loads data: a scheduler's signals are the training's business, but its own end this process.

    A handler can't tell who sent a signal, and with signals ignored the parent would wait for this process when it
    exits itself: so a thread takes them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def take() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=take, daemon=True).start()


def ignoring() -> None:
    """Leave stopping to the first of several processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
