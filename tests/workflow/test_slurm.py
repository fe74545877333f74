"""`snakemake --profile slurm` on a real cluster of two nodes: Slurm's own daemons, eight GPUs in name on each."""

import hashlib
import re
import shutil
import subprocess
import threading

import pytest
import torch

from tests.conftest import copy_project, tsd
from tests.engine.test_launch import write_weights
from tests.engine.test_training import assert_same, result
from tests.workflow.slurm_cluster import NODES, cluster
from tests.workflow.test_pipeline import BIN, edit
from tsd.engine.identity import data_digest
from tsd.engine.params import get_run, load_suite
from tsd.files import read_json, read_whole_lines

pytestmark = pytest.mark.slurm

PROFILE = (
    "--slurm-status-command",
    "squeue",
    "--slurm-no-account",
    "--slurm-init-seconds-before-status-checks",
    "2",
    "--seconds-between-status-checks",
    "5",
    "--latency-wait",
    "20",
)
"""What a cluster without accounting and with a local disk adds to slurm/profile.yaml."""

PUBLISHED = "resnet18-published.pth"
"""Pretrained weights in the project's folder."""

LIMIT = 30
"""Minutes that a job has, unless an operator shortens them."""

CUTS = ("limit", "limit", "preemption")
"""What befalls the training `baseline`, each time after a few steps."""

EPOCHS = 30
"""Of three steps, of the training that is cut: an operator needs a second or two to cut it."""


def experiments_of(content):
    """A training on two nodes, a long one, and one that has to stop before its first step."""
    content["recipes"]["released"]["schedule"] |= {"warmup_epochs": 0, "epochs": EPOCHS, "milestones": [EPOCHS - 1]}
    content["experiments"]["tsd_pc"]["schedule"] = {"epochs": 2, "milestones": [1]}
    content["experiments"]["hopeless"] = {"title": "stops before it begins"}


def suite_of(content):
    content["experiments"] = ["baseline", "tsd_pc", "hopeless"]
    content["tables"] = ["ablation"]
    content["override"]["backbone"] |= {"pretrained": PUBLISHED, "frozen_stages": 1}
    for key in ("epochs", "milestones", "warmup_epochs"):
        content["override"]["schedule"].pop(key)
    content["override"]["norm_sync"] = True
    content["monitor"] = {"val_epochs": EPOCHS, "log_steps": 1, "checkpoint_steps": 1000}
    content["resources"] = {"gpu": 1, "device": "cpu", "threads": 1, "mem_mb": 3000, "runtime": LIMIT, "workers": 2}
    content["experiment_resources"] = {"tsd_pc": {"gpu": 4, "nodes": 2}, "hopeless": {"margin": LIMIT - 0.01}}


def project_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        copy_project(folder, patch)
    edit(folder / "params/suites/tiny.yaml", suite_of)
    edit(folder / "params/experiments.yaml", experiments_of)
    write_weights(folder / PUBLISHED, seed=3)
    replace(folder / "tsd/engine/stopping.py", "ASK_SECONDS = 120.0", "ASK_SECONDS = 0.5")
    # What may be preempted is in a partition of its own.
    chosen = '        slurm_partition=lambda wildcards: "spare" if wildcards.experiment == "baseline" else "gpu",\n'
    replace(
        folder / "workflow/rules/training.smk", "        mpi=starts_itself,\n", f"        mpi=starts_itself,\n{chosen}"
    )
    return folder


def replace(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, path
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found | {"PATH": f"{BIN}:{found['PATH']}", "OMP_NUM_THREADS": "1"}


def snakemake(folder, environment, *options):
    own = {key: value for key, value in environment.items() if key not in ("MLFLOW_TRACKING_URI", "TSD_WEIGHTS")}
    command = ["timeout", "-k", "20", "1200", "snakemake", "--profile", "slurm", *PROFILE, "--config", "suite=tiny"]
    return subprocess.run([*command, *options], cwd=folder, env=own, capture_output=True, text=True)


def ask(environment, *command):
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout


class Watcher(threading.Thread):
    """What Slurm says of its jobs while they are there: id → texts of ``scontrol show job``."""

    def __init__(self, environment):
        super().__init__(daemon=True)
        self.environment, self.jobs, self.ended = environment, {}, threading.Event()

    def run(self):
        while not self.ended.wait(1):
            for text in ask(self.environment, "scontrol", "--details", "show", "job").split("\n\n"):
                if match := re.search(r"JobId=(\d+)", text):
                    self.jobs.setdefault(match[1], []).append(text)

    def trainings(self, experiment):
        """Texts of the jobs that trained it, in the order of their numbers."""
        wanted = f"train_detector_wildcards_{experiment}_"
        return [texts for _, texts in sorted(self.jobs.items()) if wanted in texts[0]]


class Operator(threading.Thread):
    """Shortens the time of the long training's job while it runs, twice, and then has it preempted."""

    def __init__(self, folder, environment):
        super().__init__(daemon=True)
        self.folder, self.environment, self.ended = folder, environment, threading.Event()

    def run(self):
        for number, way in enumerate(CUTS):
            self.wait_for(lambda number=number: self.pieces() == number and self.steps_of_this_piece() >= 4)
            job, node = self.job()
            if way == "limit":
                minutes = int(float(ask(self.environment, "squeue", "-h", "-j", job, "-o", "%M").split(":")[-2])) + 2
                self.update(job, minutes)  # less than the margin of five minutes are left
                self.wait_for(lambda number=number: self.pieces() > number)
                self.update(job, LIMIT)
            else:
                used = ask(self.environment, "scontrol", "--details", "show", "node", node)
                free = 8 - int(re.search(r"GresUsed=gpu:(?:\(null\):)?(\d+)", used)[1])
                urgent = ["sbatch", "--partition=gpu", f"--nodelist={node}", f"--gres=gpu:{free + 1}", "--time=1"]
                ask(self.environment, *urgent, "--output=/dev/null", "--mem=100", "--wrap=true")

    def wait_for(self, condition):
        while not condition():
            if self.ended.wait(0.2):
                raise SystemExit

    def run_folder(self):
        return next(self.folder.glob("results/tiny/runs/baseline/*/seed0"), self.folder / "nowhere")

    def pieces(self):
        return len(read_whole_lines(self.run_folder() / "pieces.jsonl"))

    def steps_of_this_piece(self):
        before = read_whole_lines(self.run_folder() / "pieces.jsonl")[-1:]
        done = read_whole_lines(self.run_folder() / "log.jsonl")[-1:]
        return (done[0]["step"] if done else 0) - (before[0]["stop"] if before else 0)

    def job(self):
        """Number and node of the job that trains now."""
        facts = read_json(self.run_folder() / "environment.json")
        return facts["slurm_job_id"], facts["hostname"]

    def update(self, job, minutes):
        ask(self.environment, "scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")


RANK = """import json, os, socket, sys
if "RANK" in os.environ:
    os.makedirs("ranks", exist_ok=True)
    names = ("WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")
    said = {{name: os.environ[name] for name in names}} | {{"host": socket.gethostname()}}
    with open("ranks/" + os.environ["RANK"], "w") as file:
        json.dump(said, file)
    if os.environ["RANK"] == "0":
        open({target!r}, "w").close()
    sys.exit()
"""
"""In place of a training: each process says who and where it is."""


def project_of_sixteen(folder):
    """A project whose training of 16 GPUs is that program, and the file that Snakemake is to make."""
    project_in(folder)
    change = {"gpu": 16, "nodes": 2}
    edit(folder / "params/suites/tiny.yaml", lambda content: content.update(experiment_resources={"baseline": change}))
    edit(folder / "params/suites/tiny.yaml", lambda content: content.update(experiments=["baseline"]))
    edit(folder / "params/suites/tiny.yaml", lambda content: content["override"]["schedule"].update(batch_size=16))
    suite = load_suite("tiny", root=folder)
    target = str(get_run(suite, "baseline", 0, data_digest(suite)).checkpoint)
    cli = folder / "tsd/cli.py"
    cli.write_text(RANK.format(target=target) + cli.read_text())
    return folder, target


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment):
    """A project after `snakemake --profile slurm`, what Snakemake said, and what Slurm said."""
    folder = project_in(tmp_path_factory.mktemp("slurm") / "project")
    watcher, operator = Watcher(environment), Operator(folder, environment)
    watcher.start()
    operator.start()
    done = snakemake(folder, environment)
    for thread in (watcher, operator):
        thread.ended.set()
        thread.join()
    return folder, done, watcher


@pytest.fixture(scope="module")
def sixteen(finished, tmp_path_factory, environment):
    """What 16 processes say, rank by rank, and what Snakemake said."""
    folder, target = project_of_sixteen(tmp_path_factory.mktemp("wide") / "project")
    done = snakemake(folder, environment, "--", target)
    return {int(path.name): read_json(path) for path in (folder / "ranks").glob("*")}, done


def run_folder(folder, experiment):
    (found,) = (folder / "results/tiny/runs" / experiment).glob("*/seed0")
    return found


def log_of(folder, experiment):
    (path,) = (folder / "logs/tiny/train").glob(f"{experiment}-*.log")
    return path.read_text()


def test_sixteen_processes_have_a_gpu_each_on_two_nodes(sixteen):
    ranks, done = sixteen
    assert sorted(ranks) == list(range(16)), done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    for host in NODES:
        there = [said for said in ranks.values() if said["host"] == host]
        assert sorted(int(said["LOCAL_RANK"]) for said in there) == list(range(8))
        assert {said["CUDA_VISIBLE_DEVICES"] for said in there} == {"0,1,2,3,4,5,6,7"}
    assert {said["WORLD_SIZE"] for said in ranks.values()} == {"16"}


def test_a_training_on_two_nodes_starts_from_pretrained_weights(finished):
    folder, done, watcher = finished
    run = run_folder(folder, "tsd_pc")
    assert read_json(run / "status.json")["status"] == "FINISHED", log_of(folder, "tsd_pc") + done.stderr[-3000:]
    facts = read_json(run / "environment.json")
    assert facts["processes"] == 4
    assert facts["pretrained_sha256"] == hashlib.sha256((folder / PUBLISHED).read_bytes()).hexdigest()
    file = torch.load(folder / PUBLISHED, weights_only=True)
    weights = result(run)[0]
    assert torch.equal(weights["backbone.conv1.weight"], file["conv1.weight"])
    assert not torch.equal(weights["backbone.layer4.0.conv1.weight"], file["layer4.0.conv1.weight"])
    (texts,) = watcher.trainings("tsd_pc")
    assert any("NodeList=node[1-2]" in text for text in texts)


def test_what_is_asked_for_reaches_slurm(finished):
    watcher = finished[2]
    (two,) = watcher.trainings("tsd_pc")
    assert "NumNodes=2" in two[0]
    assert re.search(r"TresPerNode=gres[:/]gpu[:=]2", two[0]), two[0]
    (one,) = watcher.trainings("baseline")
    assert "NumNodes=1" in one[0]
    assert re.search(r"TresPerJob=gres[:/]gpu[:=]1", one[0]), one[0]
    for text in (one[0], two[0]):
        assert re.search(r"(MinMemoryNode|mem)=3000M", text), text
        assert "TimeLimit=00:30:00" in text
        assert "Requeue=1" in text


def test_a_training_cut_by_its_time_limit_and_preempted_ends_with_the_bits_of_an_uncut_one(
    finished, tmp_path, monkeypatch
):
    folder, done, watcher = finished
    run = run_folder(folder, "baseline")
    pieces = read_whole_lines(run / "pieces.jsonl")
    assert [piece["by_clock"] for piece in pieces] == [True, True, False], log_of(folder, "baseline")
    assert "signal SIGTERM" in pieces[2]["reason"]
    assert all(piece["stop"] > piece["start"] for piece in pieces)
    assert [piece["stop"] for piece in pieces[:2]] == [piece["start"] for piece in pieces[1:]]
    (texts,) = watcher.trainings("baseline")  # one job all the time: no attempt of Snakemake's has failed
    assert "Restarts=3" in texts[-1]
    assert read_json(run / "status.json")["status"] == "FINISHED", log_of(folder, "baseline") + done.stderr[-3000:]
    whole = tmp_path / "project"
    shutil.copytree(folder, whole, ignore=shutil.ignore_patterns("results", "logs", ".snakemake"))
    monkeypatch.chdir(whole)
    uncut = tsd("train", "--suite", "tiny", "--experiment", "baseline", "--no-mlflow")
    assert uncut.returncode == 0, uncut.stderr
    assert_same(result(run), result(run_folder(whole, "baseline")))


def test_one_that_makes_no_progress_fails_for_good_and_says_so(finished):
    folder, done, watcher = finished
    assert done.returncode not in (0, 124, 137), "it must say that something failed"
    error = read_json(run_folder(folder, "hopeless") / "status.json")["error"]
    assert re.search(r"no progress: a job that had (30|29)\.\d minutes was to end before it had done a step", error)
    assert "no progress: " in log_of(folder, "hopeless")
    (piece,) = read_whole_lines(run_folder(folder, "hopeless") / "pieces.jsonl")  # further attempts ended at once
    assert (piece["start"], piece["stop"], piece["by_clock"]) == (0, 0, True)
    attempts = watcher.trainings("hopeless")
    assert len(attempts) == 3
    assert all("Restarts=0" in texts[-1] for texts in attempts), "it was requeued"


def test_the_tables_of_the_others_are_made_and_there_is_nothing_more_to_do(finished, environment):
    folder = finished[0]
    edit(folder / "params/suites/tiny.yaml", lambda content: content["experiments"].remove("hopeless"))
    edit(folder / "params/suites/tiny.yaml", lambda content: content["experiment_resources"].pop("hopeless"))
    done = snakemake(folder, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| + PC on both | ✓" in (folder / "results/tiny/tables/ablation.md").read_text()
    again = snakemake(folder, environment, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_the_doctor_looks_at_the_processes_of_both_nodes(finished, environment):
    """Of a suite whose GPUs are there in name only nothing but the missing accounting is worth a line."""
    folder, _, _ = finished
    done = doctor(folder, environment, "srun", "--time=5", "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2")
    assert re.search(
        r"^ok +processes +4 processes on 2 hosts \(node1, node2\), CPUs: all-reduce over gloo is", done, re.M
    )
    assert "is not written to in a job: a sqlite file does not take the jobs of a cluster" in done
    assert "partition gpu is up; 2 nodes have the" in done


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("slurm_partition: gpus", "no partition gpus; there are: gpu, spare"),
        ("gres: 'gpu:a100:2'", "partition gpu has not 1 node with 2 GPUs of type a100: it has 2 × (8 GPUs, 8 CPUs"),
    ],
)
def test_the_doctor_names_what_the_cluster_has_not(environment, tmp_path, line, said):
    asked = (
        f"default-resources:\n  {line}\n" if "partition" in line else f"set-resources:\n  train_detector:\n    {line}\n"
    )
    project = project_in(tmp_path / "project")
    (project / "slurm/profile.yaml").write_text(asked)
    done = doctor(project, environment)
    assert re.search(rf"^error +Slurm +{re.escape(said)}", done, re.M), done


def doctor(folder, environment, *launcher):
    """What `tsd doctor --quick` prints there."""
    command = [*launcher, str(BIN / "tsd"), "doctor", "--suite", "tiny", "--quick"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300).stdout
