"""What a check says, and what it is told."""

import subprocess
from dataclasses import dataclass
from typing import Literal

from tsd.doctor.processes import Processes
from tsd.engine.params import Suite
from tsd.errors import WorkError

State = Literal["ok", "warning", "error"]

PATIENCE = 10.0
"""Seconds that another program may take to answer."""


AGAIN = "rm -f .venv/.ready &&"
"""Before ``make setup``, which else takes an environment that was made once for done."""

SETUP = f"Install the lock again: `{AGAIN} make setup`."


@dataclass(frozen=True)
class Check:
    """One line: what was found, and what to do about it.

    Attributes:
        name: of what was looked at.
        state: ``warning`` for what costs something and stops nothing, ``error`` for what fails.
        finding: a sentence without its full stop.
        remedy: a sentence with the command to type; empty if all is well.
    """

    name: str
    state: State
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Context:
    """What the checks are about: a suite, on this machine, in this process.

    Attributes:
        suite: whose needs count.
        quick: files are looked for, and not read.
        here: this process among those that were started together.
    """

    suite: Suite
    quick: bool
    here: Processes

    @property
    def gpus(self) -> int:
        """GPUs that one training computes on, on all its nodes; none where they are there in name only."""
        return 0 if self.suite.resources.get("device") == "cpu" else self.suite.resources["gpu"]

    @property
    def gpus_per_node(self) -> int:
        """GPUs of one training on each of its nodes."""
        return -(-self.gpus // self.suite.resources.get("nodes", 1))

    @property
    def on_nodes(self) -> str:
        """The command that runs the doctor on the nodes of a training, one process for each GPU."""
        nodes = self.suite.resources.get("nodes", 1)
        each = -(-self.suite.resources["gpu"] // nodes)
        where = f"--nodes={nodes} --ntasks-per-node={each} --gres=gpu:{each}"
        return f"srun {where} tsd doctor --suite {self.suite.name}"


def ask(*command: str) -> str:
    """What another program prints.

    Raises:
        WorkError: it is not here, fails, or does not answer in time.
    """
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE)
    except FileNotFoundError:
        raise WorkError(f"{command[0]}: no such program on this machine") from None
    except PermissionError:
        raise WorkError(f"{command[0]}: there is one, and you may not start it") from None
    except subprocess.TimeoutExpired:
        raise WorkError(f"{command[0]} did not answer within {PATIENCE:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[0]
        raise WorkError(f"{command[0]} failed with status {done.returncode}: {said}")
    return done.stdout


def sentence(error: BaseException) -> str:
    """An error in one line: its first, and how many more there are."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    more = len(lines) - 1
    text = lines[0].strip() + (f" (and {more} more {'line' if more == 1 else 'lines'})" if more else "")
    return text if isinstance(error, (ValueError, WorkError, OSError)) else f"{type(error).__name__}: {text}"
