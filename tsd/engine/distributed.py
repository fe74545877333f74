"""One training in several processes: who is who, how they meet, and how a launcher starts them."""

import datetime
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tsd.engine.params import Run, check_resources
from tsd.errors import InputError, WorkError

TIMEOUT = datetime.timedelta(minutes=30)
"""The longest that one process waits for another; an evaluation of one of them is shorter."""

MEETING_SECONDS = 900
"""The longest that the launchers of several nodes wait for each other."""


def world() -> int:
    """Processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them; 0 writes the files."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group(on_gpu: bool) -> Iterator[None]:
    """Meet the others, over NCCL on GPUs and gloo elsewhere; nothing for a process that is alone.

    Raises:
        WorkError: they can't be reached; says how to name the network between the nodes.
    """
    if world() == 1:
        yield
        return
    import torch

    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if on_gpu else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    except RuntimeError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise WorkError(
            f"process {rank()} on {os.uname().nodename} can't meet the others at {where}: {_first(error)}. "
            f"Name the network between the nodes: `export {backend.upper()}_SOCKET_IFNAME=INTERFACE` before "
            "Snakemake is started; `ip -brief address` lists a node's interfaces"
        ) from error
    yield  # after an error the others may wait in a collective: the launcher ends them, not a farewell here
    torch.distributed.destroy_process_group()


def launch(run: Run, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """The command that starts a training's processes, None if this process is to train.

    One ``torchrun`` per node; processes meet at the first node. In a Slurm job ``srun`` starts what trains, on one node
    too: Slurm signals the processes of a step, and with cgroups only those that it started itself.

    Args:
        run: ``resources.processes`` in all, on ``resources.nodes`` nodes.
        arguments: of the command line ``tsd``.
        environment: of this process; one that a launcher started has ``WORLD_SIZE``.

    Raises:
        InputError: processes can't be spread evenly over the nodes, or several nodes are asked for outside Slurm.
    """
    total, nodes = run.processes, run.resources["nodes"]
    where = f"params/suites/{run.suite.name}.yaml: resources"
    if "WORLD_SIZE" in environment:
        if int(environment["WORLD_SIZE"]) != total:
            raise InputError(
                f"{where}: {total} processes are asked for, but the launcher started {environment['WORLD_SIZE']}"
            )
        return None
    check_resources(run)
    job = environment.get("SLURM_JOB_ID")
    if nodes > 1 and job is None:
        raise InputError(
            f"{where}.nodes: {nodes} nodes are asked for, but this is no Slurm job; start torchrun on each node"
        )
    command = [sys.executable, "-m", "tsd.cli", *arguments]
    if total > 1:
        command = [*_torchrun(total // nodes, nodes, environment), *command[1:]]
    is_step = "SLURM_STEP_ID" in environment
    if job is None or (nodes == 1 and shutil.which("srun", path=environment.get("PATH")) is None):
        return command if total > 1 else None
    if total == 1:
        if is_step or run.resources["gpu"] == 0:
            return None
        command = ["env", "WORLD_SIZE=1", *command]
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    srun += [f"--cpus-per-task={run.resources['threads']}", "--kill-on-bad-exit=1"]
    srun.append("--unbuffered")  # a progress bar has no newline, which srun would wait for
    if is_step:  # it holds what the job has
        srun.append("--overlap")
    return [*srun, *command]


def _torchrun(each: int, nodes: int, environment: Mapping[str, str]) -> list[str]:
    """The launcher of a node's processes, which passes on all signals that end a training; see
    :mod:`tsd.engine.launcher`."""
    torchrun = [sys.executable, "-m", "tsd.engine.launcher", f"--nproc-per-node={each}"]
    torchrun.append("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    if nodes == 1:
        return [*torchrun, "--standalone"]
    job = int(environment["SLURM_JOB_ID"])
    first = f"{environment.get('SLURMD_NODENAME', os.uname().nodename)}:{20000 + job % 20000}"
    # Its 60 s are too short for a node that reads the libraries from a cold network file system.
    patience = f"read_timeout={MEETING_SECONDS},join_timeout={MEETING_SECONDS}"
    meeting = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={first}", f"--rdzv-id={job}"]
    return [*torchrun, *meeting, f"--rdzv-conf={patience}"]


def tell_launcher(sentence: str, environment: Mapping[str, str]) -> None:
    """Leave why this process ends for who launched it, in the file that ``torchrun`` names; nothing without one.

    Args:
        sentence: what a user reads last.
        environment: of this process.
    """
    path = environment.get("TORCHELASTIC_ERROR_FILE")
    if path:
        content = {"message": {"message": sentence, "extraInfo": {"timestamp": int(time.time())}}}
        with suppress(OSError):  # a full disk must not hide the sentence itself, which stands above then
            Path(path).write_text(json.dumps(content), encoding="utf-8")


def _first(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def agree_on(path: Path | None) -> Path | None:
    """What rank 0 chose, in all processes."""
    if world() == 1:
        return path
    import torch

    chosen = [path]
    torch.distributed.broadcast_object_list(chosen)
    return chosen[0]
