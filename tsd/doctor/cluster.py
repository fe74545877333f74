"""The nodes of a Slurm cluster, as ``sinfo`` prints them."""

import re
from dataclasses import dataclass

from tsd.engine.slurm import minutes
from tsd.errors import InputError

FIELDS = "%P|%a|%l|%D|%T|%c|%m|%f|%G"
"""Of sinfo: partition, availability, time limit, nodes, their state, CPUs, MB, features, GPUs of each."""

_OUT_OF_USE = ("down", "drain", "fail", "error", "maint", "unknown", "inval", "future")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike."""

    partition: str
    is_default: bool
    is_up: bool
    limit: float
    count: int
    state: str
    cpus: int
    memory: int
    features: tuple[str, ...]
    gpus: dict[str, int]

    @property
    def is_usable(self) -> bool:
        """Whether jobs start there."""
        return not self.state.startswith(_OUT_OF_USE) and not self.state.endswith("*")


def read_nodes(text: str) -> list[Nodes]:
    """What sinfo prints by :data:`FIELDS`.

    Raises:
        InputError: a line that is of another form.
    """
    groups = []
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("|")
        if len(fields) != FIELDS.count("|") + 1:
            raise InputError(f"sinfo printed {line!r}, expected {FIELDS}")
        partition, available, limit, count, state, cpus, memory, features, gres = fields
        numbers = [count, cpus.rstrip("+"), memory.rstrip("+")]
        if not all(number.isdecimal() and len(number) < 16 for number in numbers):
            raise InputError(f"sinfo printed {line!r}, expected numbers of nodes, CPUs and MB as in {FIELDS}")
        if (longest := minutes(limit)) is None:
            raise InputError(f"sinfo printed {line!r}, expected a time limit as in {FIELDS}, got {limit!r}")
        groups.append(
            Nodes(
                partition=partition.rstrip("*"),
                is_default=partition.endswith("*"),
                is_up=available == "up",
                limit=longest,
                count=int(numbers[0]),
                state=state,
                cpus=int(numbers[1]),
                memory=int(numbers[2]),
                features=tuple(features.split(",")),
                gpus=gpus_of(gres),
            )
        )
    return groups


def gpus_of(gres: str) -> dict[str, int]:
    """``gpu:a100:8(S:0-1),…`` → {type: number}; the type is empty where Slurm knows none."""
    found: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        kind, *rest = entry.split(":")
        if kind == "gpu":
            number = int(rest.pop()) if rest and rest[-1].isdecimal() else 1
            model = rest[0] if rest else ""
            found[model] = found.get(model, 0) + number
    return found
