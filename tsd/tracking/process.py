"""A process of its own that talks to MLflow, so that nothing which a server does can hold who asks.

A server can accept a connection and never answer, answer a byte at a time, or take an upload for ever: no timeout of a
client ends all of these. Here each request has a deadline. The process ends itself at the deadline (the kernel's alarm,
whatever it waits for) and is killed by the one that asked.

It is started as a program, not forked: a fork would share the GPU, sqlite's locks and threads with a training.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from tsd.tracking.store import scrubbed

STARTING = 60.0
"""Seconds for the process to import MLflow; on a cluster's file system that is most of its time."""

LISTENING = 0.2
"""Seconds between two looks at whether to go on waiting."""

MOVING = b"moving"
"""What the process writes at each step forward of a long update."""


class NoAnswerError(Exception):
    """MLflow did not answer by the deadline, or the process that asks it ended."""


class RefusedError(Exception):
    """MLflow answered with an error, or could not be reached."""


class Process:
    """One request at a time to MLflow; the process starts with the first, and again after it had to be killed.

    Use it in a ``with`` statement, or call :meth:`close`: it ends the process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._received = b""
        self._uri = ""
        self._imported = False
        self.busy = False
        """Whether a request waits for its answer."""

    def ask(self, function: str, *, seconds: float, uri: str, **arguments: Any) -> None:
        """Send a request, and do not wait for its answer.

        Args:
            function: ``init``, ``find_run``, ``sync_run`` or ``sync_tables``.
            seconds: after which the process gives up, and ends, if it has come no further.
            uri: of the store; it goes through a pipe, for it may hold a password.
            arguments: the function's others, of JSON's types, and paths.

        Raises:
            NoAnswerError: the process can't be started.
        """
        assert not self.busy, "the last answer has not been taken"
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._uri = uri
        request = {"function": function, "seconds": seconds, "arguments": {"uri": uri, **arguments}}
        try:
            self._process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise NoAnswerError(self._end()) from None
        self.busy = True

    def answer(
        self,
        seconds: float,
        *,
        patient: bool = False,
        while_moving: bool = False,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Wait for the answer.

        Args:
            seconds: how long at most.
            patient: if there is none by then, leave the process to go on; otherwise kill it.
            while_moving: so many seconds without a step forward, not in all.
            given_up: is asked again and again; what it makes true ends the wait.

        Raises:
            NoAnswerError: there is none by then.
            RefusedError: MLflow answered with an error.
        """
        deadline = time.monotonic() + seconds
        if not self._imported:
            self._line(deadline, seconds, patient, given_up)
            self._imported = True
        while (line := self._line(deadline, seconds, patient, given_up)) == MOVING:
            if while_moving:
                deadline = time.monotonic() + seconds
        self.busy = False
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(_reason(answer["error"], self._uri))
        return answer["value"]

    def call(self, function: str, *, seconds: float, uri: str, while_moving: bool = False, **arguments: Any) -> Any:
        """Send a request, see :meth:`ask`, and wait for its answer, see :meth:`answer`, once the process is up.

        Raises:
            NoAnswerError: there is none by then.
            RefusedError: MLflow answered with an error.
        """
        self.ask(function, seconds=seconds, uri=uri, **arguments)
        if not self._imported:
            self._line(time.monotonic() + STARTING, STARTING)
            self._imported = True
        return self.answer(seconds, while_moving=while_moving)

    def _line(
        self, deadline: float, seconds: float, patient: bool = False, given_up: Callable[[], bool] = lambda: False
    ) -> bytes:
        """The next line that the process writes, if it does so by the deadline; the seconds are for the message."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                left = max(0.0, deadline - time.monotonic())
                if not selector.select(min(left, LISTENING)):
                    if left > LISTENING and not given_up():
                        continue
                    if not patient:
                        self.close()
                    raise NoAnswerError("told to stop" if left > LISTENING else f"no answer within {seconds:.0f} s")
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    raise NoAnswerError(self._end())
                self._received += part
        line, self._received = self._received.split(b"\n", 1)
        return line

    def close(self) -> None:
        """End the process, whatever it does; one that even a kill does not end at once is left to the system."""
        self.busy, self._imported, self._received = False, False, b""
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        self.close()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tsd.tracking.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            raise NoAnswerError(f"{sys.executable} can't be started: {error.strerror}") from None

    def _end(self) -> str:
        """Why the process ended by itself."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.returncode
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        if status == -signal.SIGALRM:
            return "no answer by the deadline"
        return (
            f"the process that asks it ended with status {status}{': ' + _reason(said[-1], self._uri) if said else ''}"
        )


def _reason(text: str, uri: str) -> str:
    """An error's first line as messages show it: with no password in it, and of nested errors the innermost."""
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return scrubbed(line.rpartition("Caused by ")[2], uri)[:300]


def _serve() -> None:
    """Do what standard input asks for, a JSON object a line, until it ends."""
    # The one that asks is told to stop, and then stops this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what MLflow prints is no answer

    import mlflow.tracking  # noqa: F401  (what takes long is done before the first deadline)

    from tsd.tracking import mirror, store

    print("ready", file=answers, flush=True)
    request: dict[str, Any] = {}

    def moved() -> None:
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        print(MOVING.decode(), file=answers, flush=True)

    functions: dict[str, Callable[..., Any]] = {
        "init": partial(store.init, moved=moved),
        "find_run": store.find_run,
        "sync_run": partial(mirror.sync_run, moved=moved),
        "sync_tables": partial(mirror.sync_tables, moved=moved),
    }
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        try:
            answer = {"value": functions[request["function"]](**request["arguments"])}
        except Exception as error:
            answer = {"error": str(error).strip() or type(error).__name__}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
