"""How processes find each other: the launcher's store, or one on the first node; and a sum over all of them."""

import os
from datetime import timedelta
from typing import Any

from tsd.doctor.checks import ask
from tsd.doctor.processes import Processes
from tsd.errors import InputError

_PORTS = range(10000, 20000)
"""Below those that a kernel gives to outgoing connections, and that a training's own launcher takes."""


def rendezvous() -> tuple[str, int]:
    """Where the processes meet: address and port.

    Raises:
        WorkError: ``scontrol`` does not tell the nodes of the step.
        InputError: a port or a job's number that is none.
    """
    if "RANK" in os.environ:
        return os.environ.get("MASTER_ADDR", "127.0.0.1"), _number("MASTER_PORT", 29500, 65535)
    nodes = os.environ["SLURM_STEP_NODELIST"]
    first = _first_host(ask("scontrol", "show", "hostnames", nodes), nodes) if set(nodes) & set("[,") else nodes
    job, step = (_number(name, 0, 2**32 - 1) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return first, _PORTS[(job + step) % len(_PORTS)]


def _first_host(printed: str, nodes: str) -> str:
    hosts = printed.split()
    if not hosts:
        raise InputError(f"scontrol names no host of SLURM_STEP_NODELIST={nodes}")
    return hosts[0]


def _number(name: str, default: int, most: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or len(text) > len(str(most)) or int(text) > most:
        raise InputError(f"{name}={text}: expected a number up to {most}")
    return int(text)


def open_store(address: str, port: int, world: int, patience: timedelta, *, is_host: bool) -> Any:
    """Connect to the store, or open it as its host.

    Raises:
        RuntimeError: it can't be reached, or the port is taken.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore(address, port, world, is_host, timeout=patience, wait_for_workers=False)
    return PrefixStore("tsd-doctor", store)


def hosted_by_launcher() -> bool:
    """Whether torchrun has opened a store already."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def sum_of_ranks(here: Processes, store: Any, patience: timedelta, *, on_gpu: bool) -> float:
    """Every process adds its number, counted from 1."""
    import torch
    from torch import distributed

    # A timeout of NCCL's own would end the process without a word: ours is shorter.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", here.device(torch.cuda.device_count()))
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=distributed.PrefixStore("group", store),  # type: ignore[attr-defined]
        rank=here.rank,
        world_size=here.world,
        timeout=patience,
    )
    number = torch.full((1024,), here.rank + 1.0, device=device)
    distributed.all_reduce(number)
    total = float(number[-1])
    distributed.destroy_process_group()
    return total
