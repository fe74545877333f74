"""A Slurm cluster of two nodes with eight GPUs each that are none: Debian's daemons, on ports of their own.

Each node's slurmd has a host name of its own, in namespaces of the kernel: both are this machine.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.debian import need

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")

NODES = ("node1", "node2")

SLURM_CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=5,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=900
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=node1 NodeAddr=127.0.0.1 Port={node1} CPUs=8 RealMemory=16000 Gres=gpu:8 State=UNKNOWN
NodeName=node2 NodeAddr=127.0.0.1 Port={node2} CPUs=8 RealMemory=16000 Gres=gpu:8 State=UNKNOWN
PartitionName=gpu Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
PartitionName=spare Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
"""

GRES_CONF = "NodeName=node[1-2] Name=gpu File={folder}/gpu[0-7]\n"
"""Links to a device: only with files of the devices does Slurm set CUDA_VISIBLE_DEVICES."""

NODE = """hostname {name} && mount --bind {folder}/hosts /etc/hosts && exec {slurmd} -D -N {name}"""

CLIENTS = ("srun", "squeue", "scontrol")
"""What a training calls in its job, where Snakemake's plugin has dropped SLURM_CONF: a cluster's own is in /etc."""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and two slurmd; yields the environment for clients. Ends them, by their ids."""
    if os.geteuid():
        pytest.skip("the daemons of a Slurm cluster want root")
    programs = {name: need(name, *PACKAGES) for name in ("munged", "slurmctld", "slurmd", "sinfo", *CLIENTS)}
    folder.chmod(0o755)
    (folder / "state").mkdir()
    host = socket.gethostname().split(".")[0]
    settings = {"host": host, "folder": folder, "controller": free_port()} | {name: free_port() for name in NODES}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**settings))
    (folder / "gres.conf").write_text(GRES_CONF.format(**settings))
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
    for number in range(8):
        (folder / f"gpu{number}").symlink_to("/dev/null")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    (folder / "bin").mkdir()
    for name in CLIENTS:
        wrapper = folder / "bin" / name
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {programs[name]} "$@"\n')
        wrapper.chmod(0o755)
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}:/usr/sbin"
    places = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munge.seed"}
    munge = [f"--{option}={folder / name}" for option, name in places.items()]
    commands = [
        [programs["munged"], "--foreground", "--force", f"--key-file={key}", *munge],
        [programs["slurmctld"], "-D"],
        *(
            [
                "unshare",
                "--uts",
                "--mount",
                "sh",
                "-c",
                NODE.format(name=name, folder=folder, slurmd=programs["slurmd"]),
            ]
            for name in NODES
        ),
    ]
    started: list[subprocess.Popen] = []
    try:
        for command in commands:
            log = (folder / f"{len(started)}-{Path(command[0]).name}.out").open("w")
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        _wait_until_idle(programs["sinfo"], environment, folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_idle(sinfo: str, environment: dict[str, str], folder: Path) -> None:
    state = ""
    for _ in range(60):
        done = subprocess.run([sinfo, "-h", "-N", "-o", "%N %t"], capture_output=True, text=True, env=environment)
        state = done.stdout.strip() or done.stderr.strip()
        if {*state.splitlines()} == {f"{name} idle" for name in NODES}:
            return
        time.sleep(1)
    logs = "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))
    raise AssertionError(f"the nodes did not become idle: {state}\n{logs}")
