"""Who a process is by the variables of its launcher, and where it meets the others."""

import os

import pytest

from tsd.doctor import rendezvous
from tsd.doctor.processes import Processes, who
from tsd.errors import InputError


def test_who_a_process_is():
    torchrun = {"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}
    assert who(torchrun) == Processes(3, 16, 1, "torchrun", os.uname().nodename)
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert who(batch).world == 1  # a batch script, which is one process
    step = batch | {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "n[1-2]"}
    assert who(step) == Processes(9, 16, 1, "srun", os.uname().nodename)
    assert who(step | {"SLURM_STEP_NUM_TASKS": "10"}).world == 10
    assert who(step | torchrun).launcher == "torchrun"  # started by a torchrun that srun started
    assert who({}).world == 1
    with pytest.raises(InputError, match="LOCAL_RANK=: expected the number that torchrun gives"):
        who({"RANK": "0", "WORLD_SIZE": "2"})
    assert who({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "5"}) == Processes(host=os.uname().nodename)
    with pytest.raises(InputError, match="LOCAL_RANK=16: expected less than the 16 processes"):
        who(torchrun | {"LOCAL_RANK": "16"})
    with pytest.raises(InputError, match="WORLD_SIZE=9999999999: expected the number"):
        who(torchrun | {"WORLD_SIZE": "9" * 10})
    with pytest.raises(InputError, match="RANK=2: expected less than the 2 processes"):
        who(torchrun | {"RANK": "2", "WORLD_SIZE": "2"})


def test_where_the_processes_of_a_step_meet(monkeypatch, program):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[07-08]")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("SLURM_STEP_ID", "2")
    program("scontrol", 'test "$*" = "show hostnames n[07-08]" && printf "n07\\nn08\\n"')
    assert rendezvous.rendezvous() == ("n07", 13458)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n07")
    program("scontrol", "exit 1")
    assert rendezvous.rendezvous()[0] == "n07"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "n01")
    monkeypatch.setenv("MASTER_PORT", "29400")
    assert rendezvous.rendezvous() == ("n01", 29400)
    monkeypatch.setenv("MASTER_PORT", "some")
    with pytest.raises(InputError, match="MASTER_PORT=some: expected a number up to 65535"):
        rendezvous.rendezvous()
