"""One training in several processes, started as on a cluster: torchrun, gloo, on this machine.

It has what a real one has: a file of pretrained weights, a frozen stage, and processes that load its data.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from mmdet.models.backbones import ResNet

from tests.conftest import ROOT, free_port, project_with_scenes, tsd
from tests.engine.test_training import assert_same, result
from tsd.engine import checkpoint
from tsd.engine.distributed import launch
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite
from tsd.errors import InputError, ParamsError

TRAIN = ("train", "--suite", "pair", "--experiment", "tsd_pc", "--no-mlflow")
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}
"""Single precision over eight steps; in double precision one step agrees to 1e-6, see test_distributed."""

PUBLISHED = "resnet18-published.pth"
"""Pretrained weights in the project's folder."""


def suite_of(processes):
    """Tiny scenes, frozen BN and reduced normalisers, so that the number of processes does not matter."""
    suite = yaml.safe_load((ROOT / "params/suites/tiny.yaml").read_text())
    suite["override"]["backbone"] |= {"norm": "frozen_bn", "frozen_stages": 1, "pretrained": PUBLISHED}
    suite["resources"]["workers"] = 1
    suite["override"]["schedule"] |= {"optimizer": "sgd", "lr": 0.01, "epochs": 2, "batch_size": 4}
    suite["override"]["norm_sync"] = True
    suite["experiments"] = ["tsd_pc"]
    suite["monitor"]["checkpoint_steps"] = 1
    suite["resources"]["processes"] = processes
    suite.pop("tables")
    return suite


def write_suite(folder, processes):
    (folder / "params/suites/pair.yaml").write_text(yaml.safe_dump(suite_of(processes)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project with the data and the pretrained weights."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project_with_scenes(tmp_path_factory.mktemp("launch") / "project", patch)
    write_weights(folder / PUBLISHED, seed=11)
    return folder


def write_weights(path, seed):
    torch.manual_seed(seed)
    state = ResNet(depth=18, base_channels=8, stem_channels=8).state_dict()
    torch.save(state | {"fc.weight": torch.zeros(2, 2)}, path)


def project_with(prepared, target, processes, monkeypatch):
    shutil.copytree(prepared, target)
    write_suite(target, processes)
    monkeypatch.chdir(target)
    return target


def run_folder() -> Path:
    suite = load_suite("pair")
    return get_run(suite, "tsd_pc", 0, data_digest(suite)).folder


@pytest.fixture(scope="module")
def reference(prepared, tmp_path_factory):
    """What one process and what two end with: (weights, log lines) by number of processes."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for processes in (1, 2):
            folder = tmp_path_factory.mktemp("reference") / "project"
            project_with(prepared, folder, processes, patch)
            done = tsd(*TRAIN)
            assert done.returncode == 0, done.stderr[-3000:]
            found[processes] = result(run_folder())
            facts = json.loads((run_folder() / "environment.json").read_text())
            assert facts["processes"] == processes
    return found


def test_two_processes_end_with_the_weights_and_figures_of_one(reference):
    one, two = reference[1], reference[2]
    for name, weight in one[0].items():
        torch.testing.assert_close(two[0][name], weight, **TOLERANCE)
    assert [line["step"] for line in one[1]] == [line["step"] for line in two[1]]  # once each: one process writes
    for first, second in zip(one[1], two[1], strict=True):
        assert second == pytest.approx(first, abs=2e-3)


def test_what_is_frozen_stays_the_files_in_every_process_and_after_resuming(prepared, reference):
    """Everything below ends with the weights of these two."""
    file = torch.load(prepared / PUBLISHED, weights_only=True)
    frozen = [name for name in file if name.startswith(("conv1.", "bn1.", "layer1.")) or "running" in name]
    assert len(frozen) > 40
    for weights, _ in reference.values():
        for name in frozen:
            assert torch.equal(weights[f"backbone.{name}"], file[name]), name
        change = max(
            float((weights[f"backbone.{name}"] - file[name]).abs().max()) for name in set(file) - {"fc.weight"}
        )
        assert 0 < change < 0.1, "trained, from where the file starts"


def test_all_processes_have_the_weights_of_the_first_ones_file(prepared, reference, tmp_path, monkeypatch):
    """Another node may have another file under the same name."""
    folder = project_with(prepared, tmp_path / "project", 2, monkeypatch)
    for rank, seed in enumerate((11, 12)):
        (folder / f"node{rank}").mkdir()
        write_weights(folder / f"node{rank}" / PUBLISHED, seed)
    (folder / PUBLISHED).unlink()
    script = folder / "rank.sh"
    script.write_text(f'TSD_WEIGHTS=node$RANK exec {sys.executable} -m tsd.cli "$@"\n')
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    process = start(*torchrun, "bash", str(script), *TRAIN)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors[-2000:]
    assert_same(result(run_folder()), reference[2])


def start(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command or (sys.executable, "-m", "tsd.cli", *TRAIN),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(step: int, process, folder: Path | None = None) -> None:
    log = (folder or run_folder()) / "log.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status():
    return json.loads((run_folder() / "status.json").read_text())


def test_ctrl_c_is_no_failure(prepared, tmp_path, monkeypatch):
    project_with(prepared, tmp_path / "project", 1, monkeypatch)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    try:
        process = start()
    finally:
        signal.signal(signal.SIGINT, old)
    wait_for_step(1, process)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, (status(), error[-300:])
    assert status()["status"] == "KILLED"
    assert status()["error"] == "interrupted by Ctrl-C"


def test_signals_and_a_damaged_checkpoint_cost_no_bit(prepared, reference, tmp_path, monkeypatch):
    """Stopped by one signal, gone on with, stopped by the other, its newest checkpoint damaged, and gone on with."""
    project_with(prepared, tmp_path / "project", 1, monkeypatch)
    for number, step in ((signal.SIGTERM, 2), (signal.SIGUSR1, 4)):
        process = start()
        wait_for_step(step, process)
        process.send_signal(number)
        asked = time.monotonic()
        process.wait(60)
        assert time.monotonic() - asked < 20  # a step and a checkpoint; generous for a busy machine
        assert process.returncode == 1
        assert f"signal {number.name}: stopped" in process.stderr.read()
        assert status()["status"] == "KILLED"
        assert not (run_folder() / "checkpoint.pth").exists()
    (newest, path), (before, _) = checkpoint.steps(run_folder() / "checkpoints")
    assert newest >= 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = tsd(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert f"step_{newest:08d}.pth: refused" in done.stderr
    assert f"resuming after step {before}" in done.stderr
    assert path.with_name(f"{path.name}.damaged").exists()
    assert_same(result(run_folder()), reference[1])


def test_two_processes_stop_and_one_goes_on_in_the_same_order(prepared, reference, tmp_path, monkeypatch):
    folder = project_with(prepared, tmp_path / "project", 2, monkeypatch)
    process = start()
    wait_for_step(3, process)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    assert process.returncode != 0
    assert status()["status"] == "KILLED"
    saved = next(checkpoint.steps(run_folder() / "checkpoints"))[0]
    assert saved >= 3
    write_suite(folder, 1)
    done = tsd(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {saved}" in done.stderr
    for name, weight in reference[1][0].items():
        torch.testing.assert_close(result(run_folder())[0][name], weight, **TOLERANCE)


def test_a_process_that_dies_ends_all_and_the_next_attempt_goes_on(prepared, reference, tmp_path, monkeypatch):
    project_with(prepared, tmp_path / "project", 2, monkeypatch)
    process = start()
    wait_for_step(2, process)
    victims = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1" and "RANK" not in child.parent().environ()  # a trainer, no loader of one
    ]
    assert len(victims) == 1
    victims[0].send_signal(signal.SIGKILL)
    process.wait(180)
    assert process.returncode != 0
    assert not (run_folder() / "checkpoint.pth").exists()
    assert status()["status"] in ("FAILED", "KILLED")
    done = tsd(*TRAIN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(result(run_folder()), reference[2])


def test_two_agents_meet_as_on_two_nodes(prepared, reference, tmp_path, monkeypatch):
    project_with(prepared, tmp_path / "project", 2, monkeypatch)
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=7", "--local-addr=127.0.0.1"]
    agents = [start(*command, "-m", "tsd.cli", *TRAIN) for _ in range(2)]
    outputs = [agent.communicate(timeout=300)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    assert_same(result(run_folder()), reference[2])


def run_with(**resources):
    suite = load_suite("tiny", root=ROOT)
    return get_run(replace(suite, resources=suite.resources | resources), "tsd_pc", 0, "0" * 12)


@pytest.fixture
def slurm(tmp_path):
    """The environment of a Slurm job's batch step, as Snakemake's plugin leaves it."""
    (tmp_path / "srun").touch(mode=0o755)
    return {"SLURM_JOB_ID": "81", "PATH": str(tmp_path)}


def test_sixteen_gpus_are_two_nodes_with_a_launcher_each(slurm):
    job = slurm | {"SLURMD_NODENAME": "n3"}
    command = launch(run_with(gpu=16, nodes=2, threads=32), ["train", "--seed", "1"], job)
    assert command[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert {"--cpus-per-task=32", "--kill-on-bad-exit=1", "--unbuffered"} <= set(command)
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=n3:20081", "--rdzv-id=81"} <= set(command)
    assert "--rdzv-conf=read_timeout=900,join_timeout=900" in command
    assert command[-5:] == ["-m", "tsd.cli", "train", "--seed", "1"]


def test_one_process_needs_no_launcher_and_a_launched_one_trains():
    assert launch(run_with(), ["train"], {}) is None
    four = run_with(gpu=4)
    assert launch(four, ["train"], {})[0] == sys.executable
    assert "--standalone" in launch(four, ["train"], {})
    assert launch(four, ["train"], {"WORLD_SIZE": "4"}) is None


def test_in_a_slurm_job_srun_starts_what_trains_so_that_signals_reach_it(slurm):
    command = launch(run_with(gpu=4, threads=8), ["train"], slurm)
    assert command[:4] == ["srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]
    assert {"--standalone", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"} <= set(command)
    assert "--overlap" not in command
    assert "--overlap" in launch(run_with(gpu=4), ["train"], slurm | {"SLURM_STEP_ID": "0"})
    one = launch(run_with(gpu=1), ["train"], slurm)
    assert one[0] == "srun"
    assert one[-6:] == ["env", "WORLD_SIZE=1", sys.executable, "-m", "tsd.cli", "train"]
    assert launch(run_with(gpu=1), ["train"], slurm | {"WORLD_SIZE": "1"}) is None


def test_without_srun_or_gpus_or_in_a_step_of_its_own_one_process_trains_itself(slurm):
    assert launch(run_with(gpu=1), ["train"], slurm | {"SLURM_STEP_ID": "0"}) is None
    assert launch(run_with(gpu=0), ["train"], slurm) is None
    assert launch(run_with(gpu=1), ["train"], slurm | {"PATH": "/nowhere"}) is None
    assert launch(run_with(gpu=4), ["train"], slurm | {"PATH": "/nowhere"})[0] == sys.executable


@pytest.mark.parametrize(
    ("resources", "environment", "message"),
    [
        ({"gpu": 4}, {"WORLD_SIZE": "2"}, "4 processes are asked for, but the launcher started 2"),
        ({"gpu": 5, "nodes": 2}, {"SLURM_JOB_ID": "1"}, "5 can't be spread evenly over 2 nodes"),
        ({"gpu": 4, "nodes": 2}, {}, "this is no Slurm job"),
    ],
)
def test_what_can_not_be_launched_says_so(resources, environment, message):
    with pytest.raises(InputError, match=message):
        launch(run_with(**resources), ["train"], environment)


def test_a_network_that_is_not_there_is_named_with_what_to_do():
    program = "from tsd.engine.distributed import process_group\nwith process_group(False): pass"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment = os.environ | place | {"GLOO_SOCKET_IFNAME": "nowhere0"}
    command = [sys.executable, "-c", program]
    both = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert f"can't meet the others at 127.0.0.1:{place['MASTER_PORT']}" in errors[0] + errors[1]
    assert "`export GLOO_SOCKET_IFNAME=INTERFACE` before Snakemake is started" in errors[0] + errors[1]


def test_a_batch_that_can_not_be_shared_out_is_named(prepared, tmp_path, monkeypatch):
    project_with(prepared, tmp_path / "project", 3, monkeypatch)
    with pytest.raises(ParamsError, match="batch_size: 4 pictures a step can't be spread evenly over the 3 processes"):
        load_suite("pair")
