"""Ending a training when a scheduler asks for it, or before it would."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill: at a time limit, at preemption."""

ASK_SECONDS = 120.0
"""A scheduler is asked for the time left as often as this: it may have become less, or more."""


@dataclass
class StopRequest:
    """What asked a training to end, if anything has, and whether the training looks at it."""

    reason: str | None = None
    heard: bool = False
    expired: str | None = None
    """What the clock says, once it has asked."""
    interrupted: bool = False
    """Whether Ctrl-C was pressed: a library may make another error of the exception."""

    def is_made(self) -> bool:
        """Whether anything has asked."""
        return self.reason is not None or self.interrupted


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn a scheduler's signals into a request to stop after the step that is being done.

    A signal before the first step ends the process at once; a further one changes nothing: a launcher repeats them.
    Ctrl-C raises ``KeyboardInterrupt`` as ever, and is noted.
    """
    request = StopRequest()

    def stop(number: int, _: Any) -> None:
        reason = request.expired or f"signal {signal.Signals(number).name}"
        if request.reason is None and not request.heard:
            raise SystemExit(f"stopped by {reason}")
        request.reason = request.reason or reason

    def interrupt(*_: Any) -> None:
        request.interrupted = True
        raise KeyboardInterrupt

    old: dict[signal.Signals, Any] = {number: signal.signal(number, stop) for number in SIGNALS}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        old[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def by_the_clock(
    request: StopRequest, seconds_left: Callable[[], float | None] | None, margin: float
) -> Iterator[None]:
    """Ask the training to end some time before its scheduler does: this needs no signal to arrive.

    Args:
        request: of :func:`listening`.
        seconds_left: until the scheduler ends the job; None while it does not say. None in place of the function: there
            is no scheduler.
        margin: seconds before that.
    """
    if seconds_left is None:
        yield
        return
    ended, ending = threading.Event(), threading.Lock()

    def watch() -> None:
        deadline = float("inf")
        while True:
            if (left := seconds_left()) is not None:
                deadline = time.monotonic() + left - margin
            wait = deadline - time.monotonic()
            if wait <= 0:
                break
            if ended.wait(min(wait, ASK_SECONDS)):
                return
        with ending:
            if not ended.is_set():
                request.expired = f"the clock, {margin / 60:g} min before the job's time is over"
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with ending:
            ended.set()


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
