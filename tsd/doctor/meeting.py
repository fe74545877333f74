"""The processes that were started together meet, add a number up, and tell the first one what they found.

They meet at a key-value store: the launcher's under ``torchrun``; under ``srun`` one of the first process, on the
first node of the step. Each says there who it is, so that those who do not come can be named. What they find goes
through the store too: a process that has to wait for none can't hang with another.
"""

import json
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from typing import Any

from tsd.doctor.checks import Check, Context
from tsd.doctor.rendezvous import hosted_by_launcher, open_store, rendezvous, sum_of_ranks
from tsd.doctor.report import NAMED, names
from tsd.errors import InputError

TIMEOUT = 120.0
"""Seconds that processes wait for each other before the missing ones are named."""

LONGEST = 1800.0
"""Seconds that they then wait for the last one's checks, of which reading the data is the longest."""

FAREWELL = 10.0


class Meeting:
    """Where the processes meet.

    Attributes:
        hosts: rank → machine of those that came.
        is_stuck: a collective did not come back, so that this process can only be ended from outside Python.
        has_told: process 0 has been told what this one found.
    """

    def __init__(self) -> None:
        self.hosts: dict[int, str] = {}
        self.is_stuck = False
        self.has_told = False
        self._store: Any = None

    def all_reduce(self, context: Context) -> list[Check]:
        """Whether all came, each to a GPU of its own, and whether a sum over all of them is right.

        What all of them see is said by process 0 alone, if it came.
        """
        here = context.here
        if here.world == 1:
            finding = "one process; started by srun or torchrun, all of them are tried together"
            return [Check("processes", "ok", finding)]
        address, port = rendezvous()
        try:
            self._store = self._open(context, address, port, is_host=here.is_first and not hosted_by_launcher())
            self._put("here", here.rank, {"host": here.host, "device": _device(context)})
            came = self._gather("here", here.world, TIMEOUT)
        except RuntimeError as error:  # torch's own have this as their base; their text names address and reason
            self._store = None
            finding = f"{here.host} can't reach the others at {address}:{port}: {_first_line(error)}"
            return [Check("processes", "error", finding, _REACH.format(address=address, port=port))]
        self.hosts = {rank: said["host"] for rank, said in came.items()}
        wrong = [_missing(context, self.hosts)] if len(came) < here.world else _seats(context, came)
        if wrong:
            told = here.rank and 0 in self.hosts
            return [Check("processes", "ok", "see process 0")] if told else wrong
        return [self._add_up(context, address, port, came[0]["device"] is not None)]

    def _open(self, context: Context, address: str, port: int, *, is_host: bool) -> Any:
        return open_store(address, port, context.here.world, timedelta(seconds=TIMEOUT), is_host=is_host)

    def _put(self, key: str, rank: int, said: Any) -> None:
        """Say something under the key, in the order in which the processes come: who reads asks for nobody by name."""
        self._store.set(f"{key}/{self._store.add(key, 1)}", json.dumps([rank, said]))

    def _gather(self, key: str, number: int, timeout: float) -> dict[int, Any]:
        """Rank → what it has put under the key by then; ends earlier when so many have."""
        found: dict[int, Any] = {}
        end, turn = time.monotonic() + timeout, 0
        with suppress(RuntimeError):  # nobody else came in time
            while len(found) < number and (left := end - time.monotonic()) > 0:
                turn += 1
                self._store.wait([f"{key}/{turn}"], timedelta(seconds=left))
                rank, said = json.loads(self._store.get(f"{key}/{turn}"))
                found[rank] = said
        return dict(sorted(found.items()))

    def _add_up(self, context: Context, address: str, port: int, on_gpu: bool) -> Check:
        """All-reduce in a thread of its own: a network that swallows packets makes it wait for ever."""
        here = context.here
        said: dict[str, Any] = {}

        def work() -> None:
            try:
                # By a connection of its own: one that waits lets nobody else speak.
                store = self._open(context, address, port, is_host=False)
                said["sum"] = sum_of_ranks(here, store, timedelta(seconds=2 * TIMEOUT), on_gpu=on_gpu)
            except Exception as error:
                said["error"] = _first_line(error)

        started = time.monotonic()
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(TIMEOUT)
        took = time.monotonic() - started
        backend = "NCCL" if on_gpu else "gloo"
        hosts = set(self.hosts.values())
        who = f"{here.world} processes on {len(hosts)} host{'s' if len(hosts) > 1 else ''} ({names(hosts)})"
        if thread.is_alive():
            self.is_stuck = True
            said["error"] = f"no answer within {TIMEOUT:g} s"
        expected = here.world * (here.world + 1) / 2
        if said.get("sum") == expected:
            devices = f"{here.world} GPUs" if on_gpu else "CPUs"
            return Check("processes", "ok", f"{who}, {devices}: all-reduce over {backend} is right, {took:.1f} s")
        wrong = said.get("error") or f"the sum is {said['sum']:g}, expected {expected:g}"
        remedy = _NCCL if on_gpu else _GLOO
        return Check("processes", "error", f"{who}: all-reduce over {backend}: {wrong}", remedy)

    @property
    def is_heard(self) -> bool:
        """Whether process 0 can be told anything."""
        return self._store is not None and 0 in self.hosts

    def exchange(self, context: Context, checks: list[Check]) -> dict[int, list[Check]]:
        """Tell process 0 what this one found; there, what each of the others did.

        Nobody leaves before process 0 has heard all: ``torchrun`` ends the rest as soon as one fails.
        """
        rank = context.here.rank
        if not self.is_heard:
            return {}
        others = [other for other in self.hosts if other]
        with suppress(RuntimeError):  # process 0 is gone, or has not been heard of for so long
            if rank:
                self._put("found", rank, [asdict(check) for check in checks])
                self.has_told = True
                self._store.wait(["heard"], timedelta(seconds=LONGEST))
                self._put("bye", rank, True)
                return {}
            heard = self._gather("found", len(others), LONGEST)
            self._store.set("heard", "true")
            self._gather("bye", len(heard), FAREWELL)
            return {other: _lines(heard.get(other), other, self.hosts[other]) for other in others}
        return {}


def _lines(heard: list[dict[str, Any]] | None, rank: int, host: str) -> list[Check]:
    if heard is None:
        remedy = "See what it prints itself."
        return [Check("processes", "error", f"rank {rank} ({host}) came, and did not say what it found", remedy)]
    return [Check(**line) for line in heard]


def _device(context: Context) -> str | None:
    """What tells this process's GPU from all others; None if it has none."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        index = context.here.device(torch.cuda.device_count())
    except InputError:  # there are more processes than GPUs
        return None
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} {properties.uuid}"


def _missing(context: Context, came: dict[int, str]) -> Check:
    missing = [str(rank) for rank in islice((rank for rank in range(context.here.world) if rank not in came), NAMED)]
    more = context.here.world - len(came) - len(missing)
    hosts = sorted(set(came.values()))
    finding = (
        f"{len(came)} of {context.here.world} processes came within {TIMEOUT:g} s, from {', '.join(hosts)}; "
        f"missing: {'rank' if len(missing) == 1 else 'ranks'} {', '.join(missing)}"
        f"{f' and {more} more' if more else ''}"
    )
    remedy = "See what they print themselves, and on which nodes they are: `squeue --steps -j $SLURM_JOB_ID`."
    if context.here.launcher == "torchrun":
        remedy = "See what they print themselves: `torchrun --tee 3 …`."
    return Check("processes", "error", finding, remedy)


def _seats(context: Context, came: dict[int, Any]) -> list[Check]:
    """A line for each GPU that several processes of a machine have, and one if some have none."""
    owners: dict[tuple[str, str], list[int]] = {}
    without = []
    for rank, said in came.items():
        if said["device"] is None:
            without.append(rank)
        else:
            owners.setdefault((said["host"], said["device"]), []).append(rank)
    problems = [
        f"ranks {', '.join(map(str, ranks))} on {host} are on the same GPU, {device}"
        for (host, device), ranks in owners.items()
        if len(ranks) > 1
    ]
    if owners and without:
        problems.append(f"ranks {', '.join(map(str, without))} have no GPU, and others have one")
    remedy = f"Give each a GPU of its own: `{context.on_nodes}`."
    return [Check("processes", "error", problem, remedy) for problem in problems]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


_REACH = (
    "See whether the name is known and the port free on the first node: `getent hosts {address}` and "
    "`ss -ltn 'sport = :{port}'`."
)

_NCCL = (
    "See what NCCL says, and name the network between the nodes: `export NCCL_DEBUG=INFO "
    "NCCL_SOCKET_IFNAME=INTERFACE`; `ip -brief address` lists the interfaces."
)

_GLOO = "Name the network between the nodes: `export GLOO_SOCKET_IFNAME=INTERFACE`; `ip -brief address` lists them."
