"""Several processes: as torchrun and srun start them, and where one does not come, or is alone with its trouble."""

import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT, free_port
from tests.doctor.conftest import context
from tsd.doctor import meeting, rendezvous
from tsd.doctor.checks import Check
from tsd.doctor.meeting import Meeting
from tsd.doctor.processes import Processes

HOST = "127.0.0.1"


def here(rank, world=2):
    return Processes(rank, world, rank, "srun", f"n{rank}")


@pytest.fixture
def together(project, monkeypatch):
    """Let processes meet as threads of this one, each in the function given, and give what each of them returns."""
    port = free_port()
    monkeypatch.setattr(meeting, "rendezvous", lambda: (HOST, port))
    monkeypatch.setattr(meeting, "hosted_by_launcher", lambda: False)

    def run(function, ranks, world=2):
        found = {}
        meetings = {rank: Meeting() for rank in ranks}  # the first's ends the store with it

        def one(rank):
            found[rank] = function(meetings[rank], context(here=here(rank, world)))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        return found

    return run


def meet(own, about):
    return own.all_reduce(about)


def on_host(about, host):
    """The same, on another machine."""
    own = about.here
    return type(about)(about.suite, about.quick, Processes(own.rank, own.world, own.local_rank, own.launcher, host))


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def test_a_process_that_is_alone_says_so(examined):
    assert examined("processes", context()).only("ok").finding.startswith("one process")


def test_two_processes_of_torchrun(project):
    """Process 1 has an error: process 0 prints and counts it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "tests.doctor.two", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project, env=environment(), timeout=120)
    lines, host = done.stdout.splitlines(), os.uname().nodename
    met = next(line for line in lines if line.startswith("ok       processes"))
    assert f"2 processes on 1 host ({host})" in met
    assert "all-reduce over gloo is right" in met
    assert "ok       mood           fine" in lines
    assert [line for line in lines if "rank 1" in line] == [
        f"rank 1 ({host}): error    mood           red",
        f"rank 1 ({host}):          Cheer up: `true`.",
    ]
    assert lines[-1].startswith("1 error; ")
    assert done.returncode == 1, done.stderr


def test_two_processes_of_srun(project):
    """As srun starts them, by its variables: process 0 gives the JSON of both, and both end with 1."""
    step = {"SLURM_JOB_ID": str(int(time.time())), "SLURM_STEP_ID": "3", "SLURM_STEP_NODELIST": HOST}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.doctor.two", "1", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=project,
            env=environment(**step, SLURM_PROCID=str(rank), SLURM_NTASKS="2", SLURM_LOCALID=str(rank)),
        )
        for rank in (0, 1)
    ]
    (first, said), (second, _) = (process.communicate(timeout=120) for process in started)
    assert [process.returncode for process in started] == [1, 1], said
    assert second == ""
    found = [(line["rank"], line["name"], line["state"]) for line in json.loads(first)]
    assert found == [(0, "processes", "ok"), (0, "mood", "ok"), (1, "mood", "error")]


def test_a_process_that_does_not_come_is_named_by_the_first(together, monkeypatch):
    monkeypatch.setattr(meeting, "TIMEOUT", 1.0)
    found = together(meet, ranks=[0, 2], world=4)
    line = found[0][0]
    assert line.state == "error"
    assert line.finding == "2 of 4 processes came within 1 s, from n0, n2; missing: ranks 1, 3"
    assert "`squeue --steps -j $SLURM_JOB_ID`" in line.remedy
    assert found[2] == [Check("processes", "ok", "see process 0")]


def test_a_hundred_million_processes_are_not_waited_for_one_by_one(together, monkeypatch):
    monkeypatch.setattr(meeting, "TIMEOUT", 1.0)
    started = time.monotonic()
    line = together(meet, ranks=[0, 2], world=100_000_000)[0][0]
    assert time.monotonic() - started < 30
    assert line.finding.startswith("2 of 100000000 processes came within 1 s, from n0, n2; missing: ranks 1, 3, 4, ")
    assert line.finding.endswith(" and 99999990 more")


def test_a_first_process_that_does_not_come_is_an_error_in_the_others(together, monkeypatch):
    monkeypatch.setattr(meeting, "TIMEOUT", 1.0)
    line = together(meet, ranks=[1])[1][0]
    assert line.state == "error"
    assert line.finding.startswith("n1 can't reach the others at 127.0.0.1:")
    assert "`getent hosts 127.0.0.1`" in line.remedy


def test_a_port_that_is_taken_is_an_error(together, monkeypatch):
    monkeypatch.setattr(meeting, "TIMEOUT", 1.0)
    taken = rendezvous.open_store(*meeting.rendezvous(), 2, meeting.timedelta(seconds=1), is_host=True)
    line = together(meet, ranks=[0])[0][0]
    assert line.state == "error"
    assert "can't reach the others" in line.finding
    assert "ss -ltn" in line.remedy
    del taken


def test_a_sum_that_is_wrong_and_one_that_never_comes(together, monkeypatch):
    monkeypatch.setattr(meeting, "TIMEOUT", 2.0)
    monkeypatch.setattr(meeting, "sum_of_ranks", lambda here, store, patience, on_gpu: 2.0)
    line = together(meet, ranks=[0, 1])[0][0]
    assert line.state == "error"
    assert "all-reduce over gloo: the sum is 2, expected 3" in line.finding
    assert "GLOO_SOCKET_IFNAME" in line.remedy


def test_a_sum_that_never_comes_ends_with_the_process(together, monkeypatch):
    monkeypatch.setattr(meeting, "TIMEOUT", 1.0)
    monkeypatch.setattr(meeting, "sum_of_ranks", lambda here, store, patience, on_gpu: time.sleep(3))

    def stuck(own, about):
        return own.all_reduce(about), own.is_stuck

    (line,), is_stuck = together(stuck, ranks=[0, 1])[0]
    assert line.state == "error"
    assert "no answer within 1 s" in line.finding
    assert is_stuck


def test_two_processes_on_one_gpu_are_an_error(together, monkeypatch):
    monkeypatch.setattr(meeting, "_device", lambda about: "NVIDIA A100 GPU-1234")
    both = together(lambda own, about: own.all_reduce(on_host(about, "n0")), ranks=[0, 1])
    line = both[0][0]
    assert line.state == "error"
    assert line.finding == "ranks 0, 1 on n0 are on the same GPU, NVIDIA A100 GPU-1234"
    assert "srun " in line.remedy
    assert both[1] == [Check("processes", "ok", "see process 0")]


def test_the_same_card_in_two_machines_is_two_and_one_without_any_is_an_error(together, monkeypatch):
    monkeypatch.setattr(meeting, "sum_of_ranks", lambda here, store, patience, on_gpu: 3.0 if on_gpu else 0.0)
    monkeypatch.setattr(meeting, "_device", lambda about: "NVIDIA A100 GPU-1234")
    assert "2 GPUs: all-reduce over NCCL is right" in together(meet, ranks=[0, 1])[0][0].finding
    other = free_port()
    monkeypatch.setattr(meeting, "rendezvous", lambda: (HOST, other))
    monkeypatch.setattr(meeting, "_device", lambda about: "A100" if about.here.rank else None)
    assert together(meet, ranks=[0, 1])[0][0].finding == "ranks 0 have no GPU, and others have one"


def test_what_tells_one_gpu_from_another(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert meeting._device(context(here=here(0))) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = {0: SimpleNamespace(name="A100", uuid="1-2"), 1: SimpleNamespace(name="A100", uuid="3-4")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card[index])
    assert meeting._device(context(here=here(1))) == "A100 3-4"
    assert meeting._device(context(here=here(2, world=3))) is None


def test_what_each_found_is_told_to_the_first(together, monkeypatch):
    monkeypatch.setattr(meeting, "sum_of_ranks", lambda here, store, patience, on_gpu: 6.0)

    def tell(own, about):
        own.all_reduce(about)
        return own.exchange(about, [Check("x", "error", f"of {about.here.rank}", "…")])

    found = together(tell, ranks=[0, 1, 2], world=3)
    assert found[0] == {rank: [Check("x", "error", f"of {rank}", "…")] for rank in (1, 2)}
    assert found[1] == found[2] == {}


def test_one_that_came_and_then_fell_silent_is_an_error(together, monkeypatch):
    monkeypatch.setattr(meeting, "LONGEST", 1.0)
    monkeypatch.setattr(meeting, "sum_of_ranks", lambda here, store, patience, on_gpu: 3.0)

    def tell(own, about):
        own.all_reduce(about)
        return own.exchange(about, []) if about.here.rank == 0 else None

    (line,) = together(tell, ranks=[0, 1])[0][1]
    assert line.state == "error"
    assert line.finding == "rank 1 (n1) came, and did not say what it found"


def test_a_step_whose_nodes_are_not_told_is_an_error(examined, monkeypatch, program):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[07-08]")
    program("scontrol", "echo 'scontrol: error: no slurm.conf' >&2; exit 1")
    line = examined("processes", context(here=here(0))).only("error")
    assert "scontrol failed with status 1: scontrol: error: no slurm.conf" in line.finding
