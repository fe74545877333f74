"""This process among those that ``torchrun`` or ``srun`` started together."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from tsd.errors import InputError


@dataclass(frozen=True)
class Processes:
    """Who this process is.

    Attributes:
        rank: its number among all; 0 speaks for them.
        world: how many there are.
        local_rank: its number on this machine.
        launcher: who started them: ``torchrun``, ``srun``, or nobody.
        host: name of this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    launcher: str = ""
    host: str = ""

    @property
    def is_first(self) -> bool:
        """Whether it does what is to be done once in all."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """Whether it does what is to be done once on each machine."""
        return self.local_rank == 0

    def device(self, count: int) -> int:
        """Index of its own GPU among the ``count`` that it sees.

        Under ``srun`` a single one may have been handed to each process; ``torchrun`` leaves all of them to all.

        Raises:
            InputError: there are more processes on this machine than GPUs.
        """
        if self.launcher == "srun" and count == 1:
            return 0
        if self.local_rank >= count:
            raise InputError(
                f"process {self.local_rank} of {self.host}, counted from 0, has no GPU of its own: it sees {count}"
            )
        return self.local_rank


_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}

_STEP_TASKS = "SLURM_STEP_NUM_TASKS"
"""Goes before ``SLURM_NTASKS``, which in an interactive allocation is the job's."""


_DIGITS = 9
"""Of the largest number that counts anything here."""


def who(environment: Mapping[str, str]) -> Processes:
    """This process, by the variables of its launcher. A batch script is one process, however many tasks its job has.

    Raises:
        InputError: a variable that is missing, no number, or not below the number of processes.
    """
    host = socket.gethostname()
    if "RANK" in environment and "WORLD_SIZE" in environment:
        launcher = "torchrun"
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:  # the latter is of srun's steps alone
        launcher = "srun"
    else:
        return Processes(host=host)
    numbers = []
    names = [
        _STEP_TASKS if name == "SLURM_NTASKS" and _STEP_TASKS in environment else name for name in _VARIABLES[launcher]
    ]
    for name in names:
        text = environment.get(name, "")
        if not text.isdecimal() or len(text) > _DIGITS:
            raise InputError(f"{name}={text}: expected the number that {launcher} gives each process")
        numbers.append(int(text))
    rank, world, local_rank = numbers
    if rank >= world:
        raise InputError(f"{_VARIABLES[launcher][0]}={rank}: expected less than the {world} processes that there are")
    if world == 1:
        return Processes(host=host)
    if local_rank >= world:
        name = _VARIABLES[launcher][2]
        raise InputError(f"{name}={local_rank}: expected less than the {world} processes that there are")
    return Processes(rank, world, local_rank, launcher, host)
