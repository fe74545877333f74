"""A Slurm cluster of one node with two GPUs that are none: Debian's daemons, in a folder and on ports of their own."""

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

SLURM_CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=600
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

GRES_CONF = "NodeName={host} Name=gpu File=/dev/null,/dev/zero\n"
"""Device files that exist everywhere: only so does Slurm set CUDA_VISIBLE_DEVICES."""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd; yields the environment for clients. Ends them, by their ids."""
    if os.geteuid():
        pytest.skip("the daemons of a Slurm cluster want root")
    programs = {name: need(name, *PACKAGES) for name in ("munged", "slurmctld", "slurmd", "sinfo")}
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    settings = {"host": host, "folder": folder, "cpus": os.cpu_count()}
    settings |= {"controller": free_port(), "node": free_port()}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**settings))
    (folder / "gres.conf").write_text(GRES_CONF.format(**settings))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    # Snakemake's plugin drops SLURM_CONF before it calls srun in a job: a cluster's own configuration is in /etc.
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "srun"
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {need("srun", *PACKAGES)} "$@"\n')
    wrapper.chmod(0o755)
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}:/usr/sbin"
    places = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munge.seed"}
    munge = [f"--{option}={folder / name}" for option, name in places.items()]
    commands = [
        [programs["munged"], "--foreground", "--force", f"--key-file={key}", *munge],
        [programs["slurmctld"], "-D"],
        [programs["slurmd"], "-D"],
    ]
    started: list[subprocess.Popen] = []
    try:
        for command in commands:
            log = (folder / f"{Path(command[0]).name}.out").open("w")
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
        done = subprocess.run([sinfo, "-h", "-o", "%t"], capture_output=True, text=True, env=environment)
        state = done.stdout.strip() or done.stderr.strip()
        if state == "idle":
            return
        time.sleep(1)
    logs = "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))
    raise AssertionError(f"the node did not become idle: {state}\n{logs}")
