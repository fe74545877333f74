"""One training in several processes: who is who, how they meet, and how a launcher starts them."""

import datetime
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tsd.engine.params import Suite
from tsd.errors import InputError

TIMEOUT = datetime.timedelta(minutes=30)
"""The longest that one process waits for another; an evaluation of one of them is shorter."""


def world() -> int:
    """Processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them; 0 writes the files."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group(on_gpu: bool) -> Iterator[None]:
    """Meet the others, over NCCL on GPUs and gloo elsewhere; nothing for a process that is alone."""
    if world() == 1:
        yield
        return
    import torch

    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    yield  # after an error the others may wait in a collective: the launcher ends them, not a farewell here
    torch.distributed.destroy_process_group()


def launch(suite: Suite, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """The command that starts a training's processes, None if this process is to train.

    One ``torchrun`` per node, which under Slurm ``srun`` starts on each; processes meet at the first node.

    Args:
        suite: ``resources.processes`` in all, on ``resources.nodes`` nodes.
        arguments: of the command line ``tsd``.
        environment: of this process; one that a launcher started has ``WORLD_SIZE``.

    Raises:
        InputError: processes can't be spread evenly over the nodes, or several nodes are asked for outside Slurm.
    """
    total, nodes = suite.processes, suite.resources["nodes"]
    where = f"params/suites/{suite.name}.yaml: resources"
    if "WORLD_SIZE" in environment:
        if int(environment["WORLD_SIZE"]) != total:
            raise InputError(
                f"{where}: {total} processes are asked for, but the launcher started {environment['WORLD_SIZE']}"
            )
        return None
    if total == 1:
        return None
    if total % nodes:
        raise InputError(f"{where}.processes: {total} can't be spread evenly over {nodes} nodes")
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={total // nodes}"]
    command = ["-m", "tsd.cli", *arguments]
    if nodes == 1:
        return [*torchrun, "--standalone", *command]
    if "SLURM_JOB_ID" not in environment:
        raise InputError(
            f"{where}.nodes: {nodes} nodes are asked for, but this is no Slurm job; start torchrun on each node"
        )
    job = int(environment["SLURM_JOB_ID"])
    first = f"{environment.get('SLURMD_NODENAME', os.uname().nodename)}:{20000 + job % 20000}"
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    meeting = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={first}", f"--rdzv-id={job}"]
    return [*srun, *torchrun, *meeting, *command]


def agree_on(path: Path | None) -> Path | None:
    """What rank 0 chose, in all processes."""
    if world() == 1:
        return path
    import torch

    chosen = [path]
    torch.distributed.broadcast_object_list(chosen)
    return chosen[0]
