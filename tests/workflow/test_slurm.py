"""`snakemake --profile slurm` on a real cluster of one node: Slurm's own daemons, two GPUs in name."""

import json
import math
import re
import shutil
import subprocess
import threading

import pytest

from tests.conftest import copy_project, tsd
from tests.workflow.slurm_cluster import cluster
from tests.workflow.test_pipeline import BIN, edit
from tsd.files import read_yaml

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


SECONDS = 110
"""Of a training that nothing disturbs. Slurm kills between one minute and one and a half; four attempts are enough for
one that is twice as slow beside the others."""

TRIAL_EPOCHS = 20
"""Of three steps, to see how fast this machine is."""


def suite_of(epochs):
    """Two trainings, longer than their time limit of a minute, and one that can't succeed."""

    def change(content):
        content["experiments"] = ["baseline", "tsd_pc", "broken"]
        content["tables"] = ["ablation"]
        content["override"]["backbone"].pop("pretrained", None)
        content["override"]["schedule"] |= {"epochs": epochs, "milestones": [epochs - 1], "warmup_epochs": 0}
        content["monitor"] = {"val_epochs": epochs, "log_steps": 1, "checkpoint_steps": 20}
        content["resources"] = {"gpu": 1, "threads": 1, "mem_mb": 2500, "runtime": 1, "workers": 0}

    return change


def enough_epochs(folder):
    """So many that the slower training takes :data:`SECONDS` on this machine as it is now."""
    path = folder / "params/suites/tiny.yaml"
    before = path.read_text()
    edit(path, suite_of(TRIAL_EPOCHS))
    edit(path, lambda content: content.update(experiments=["tsd_pc"]))
    edit(path, lambda content: content["resources"].update(gpu=0))
    edit(path, lambda content: content["override"]["backbone"].update(pretrained=None))
    for command in (["data", "generate"], ["train", "--experiment", "tsd_pc", "--no-mlflow"]):
        done = tsd(*command, "--suite", "tiny", cwd=folder)
        assert done.returncode == 0, done.stderr
    (log,) = (folder / "results/tiny/runs/tsd_pc").glob("*/seed0/log.jsonl")
    times = [json.loads(line)["time"] for line in log.read_text().splitlines()]
    shutil.rmtree(folder / "results")
    shutil.rmtree(folder / "data")
    path.write_text(before)
    return math.ceil(SECONDS / (times[-1] - times[0]) * TRIAL_EPOCHS)


RETRIES = 3
"""More than the rule's two, for slow machines: a minute holds the start of three programs and then some training."""


def experiments_of(content):
    content["defaults"]["backbone"]["pretrained"] = None
    content["experiments"]["broken"] = {"title": "no such weights", "backbone": {"pretrained": "nowhere.pth"}}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found | {"PATH": f"{BIN}:{found['PATH']}", "OMP_NUM_THREADS": "1"}


class Watcher(threading.Thread):
    """What Slurm says of its jobs while they are there: id → text of ``scontrol show job``."""

    def __init__(self, environment):
        super().__init__(daemon=True)
        self.environment, self.jobs, self.ended = environment, {}, threading.Event()
        self.together = []  # GPUs of the jobs that run, each time it looked

    def run(self):
        while not self.ended.wait(2):
            command = ["scontrol", "--details", "show", "job"]
            done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
            texts = done.stdout.split("\n\n")
            self.together.append([gpu_of([text]) for text in texts if "=RUNNING" in text and "GRES=gpu" in text])
            for text in texts:
                if match := re.search(r"JobId=(\d+)", text):
                    self.jobs.setdefault(match[1], []).append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment):
    """A project after `snakemake --profile slurm`, what Snakemake said, and what Slurm said."""
    with pytest.MonkeyPatch.context() as patch:
        folder = copy_project(tmp_path_factory.mktemp("slurm") / "project", patch)
    edit(folder / "params/suites/tiny.yaml", suite_of(enough_epochs(folder)))
    edit(folder / "params/experiments.yaml", experiments_of)
    rules = folder / "workflow/rules/training.smk"
    rules.write_text(rules.read_text().replace("retries: 2", f"retries: {RETRIES}"))
    watcher = Watcher(environment)
    watcher.start()
    done = snakemake(folder, environment)
    watcher.ended.set()
    watcher.join()
    return folder, done, watcher


def snakemake(folder, environment, *options):
    own = {key: value for key, value in environment.items() if key not in ("MLFLOW_TRACKING_URI", "TSD_WEIGHTS")}
    command = ["timeout", "-k", "20", "1500", "snakemake", "--profile", "slurm", *PROFILE, *options]
    command += ["--config", "suite=tiny"]
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)


def runs(folder, experiment):
    return list((folder / "results/tiny/runs" / experiment).glob("*/seed0"))


def log_of(folder, experiment):
    (path,) = (folder / "logs/tiny/train").glob(f"{experiment}-*.log")
    return path.read_text()


def test_trainings_killed_by_their_time_limit_go_on_and_finish(finished):
    folder, done, watcher = finished
    jobs = watcher.jobs
    attempts = [len(trainings(jobs, name)) for name in ("baseline", "tsd_pc")]
    states = [state for texts in jobs.values() for text in texts for state in re.findall(r"JobState=(\w+)", text)]
    assert "TIMEOUT" in states, done.stderr[-3000:]
    assert max(attempts) >= 2, "no training was gone on with"
    gone_on = [name for name in ("baseline", "tsd_pc") if "resuming after step" in log_of(folder, name)]
    assert len(gone_on) == sum(number > 1 for number in attempts)
    for name in ("baseline", "tsd_pc"):
        (folder_of_run,) = runs(folder, name)
        assert json.loads((folder_of_run / "status.json").read_text())["status"] == "FINISHED", log_of(folder, name)
        steps = [json.loads(line)["step"] for line in (folder_of_run / "log.jsonl").read_text().splitlines()]
        trained = sorted(set(steps))
        epochs = read_yaml(folder / "params/suites/tiny.yaml")["override"]["schedule"]["epochs"]
        assert trained == list(range(1, 3 * epochs + 1))  # no step is missing, whatever was killed


def test_what_is_asked_for_reaches_slurm(finished):
    _, _, watcher = finished
    jobs = watcher.jobs
    training = [texts[0] for texts in jobs.values() if "train_detector" in texts[0]]
    assert len(training) >= 3
    for text in training:
        assert re.search(r"TresPerJob=gres[:/]gpu[:=]1", text), text
        assert "TimeLimit=00:01:00" in text
        assert re.search(r"(MinMemoryNode|mem)=2500M", text), text
        assert "NumNodes=1" in text
        assert "Partition=gpu" in text


def gpu_of(texts):
    """Number of the GPU that a job was given."""
    return next(match[1] for text in texts if (match := re.search(r"GRES=gpu\S*\(IDX:(\d)\)", text)))


def trainings(jobs, experiment):
    """What Slurm said of the attempts at an experiment's training, by job."""
    return {number: texts for number, texts in jobs.items() if f"train_detector_wildcards_{experiment}_" in texts[0]}


def test_trainings_side_by_side_see_different_gpus(finished):
    folder, _, watcher = finished
    assert ["0", "1"] in [sorted(gpus) for gpus in watcher.together], "never two at once"
    assert all(len(gpus) == len(set(gpus)) for gpus in watcher.together)
    for name in ("baseline", "tsd_pc"):
        facts = json.loads((runs(folder, name)[0] / "environment.json").read_text())
        assert facts["cuda_visible_devices"] == gpu_of(watcher.jobs[facts["slurm_job_id"]])


def test_a_training_that_always_fails_leaves_the_others_and_is_told(finished):
    folder, done, watcher = finished
    assert done.returncode not in (0, 124, 137), "it must say that something failed"
    assert "no file nowhere.pth" in log_of(folder, "broken")
    assert len(trainings(watcher.jobs, "broken")) == 1 + RETRIES
    published = sorted(path.name.split("-")[0] for path in (folder / "results/tiny/metrics").glob("*.json"))
    assert published == ["baseline", "tsd_pc"]


def test_the_tables_of_the_others_are_made_and_there_is_nothing_more_to_do(finished, environment):
    folder, _, _ = finished
    edit(folder / "params/suites/tiny.yaml", lambda content: content["experiments"].remove("broken"))
    done = snakemake(folder, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| + PC on both | ✓" in (folder / "results/tiny/tables/ablation.md").read_text()
    again = snakemake(folder, environment, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr
