"""Train a suite of generated scenes on a GPU machine without Snakemake and MLflow, in pieces that fit its time limit.

    python benchmarks/gpu_train.py --suite demo [--experiments baseline tsd_pc] [--seeds 0] [--minutes 9]

Makes the data if it is not there, and then trains, predicts and evaluates one run after another with the command line
``tsd``. When the time is nearly over the training that runs is told to stop (SIGTERM): it saves its step, and the same
command goes on with it. Each finished run's ``metrics.json`` is copied to ``--out``, beside a ``summary.json``.

Where a run is trained is no part of its digest, as ``resources`` are none. So that runs of a GPU never pass for the
recorded ones of a CPU, all is done in a folder of its own for each device, ``--work``: with a copy of ``params/`` in
which the suite's ``resources`` ask for that device, and with its own ``data/`` and ``results/``.

Exit status: 0 all is done, 3 the time was over before, 1 a run failed (the others go on), 2 bad input.
"""

import argparse
import importlib
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from clock import Clock  # noqa: E402

from tsd.engine.identity import data_digest  # noqa: E402
from tsd.engine.params import Run, get_run, load_suite  # noqa: E402
from tsd.errors import InputError  # noqa: E402
from tsd.files import read_json, read_whole_lines, read_yaml, write_json, write_text  # noqa: E402

START_SECONDS = 60
"""Nothing is begun with less time left: a training takes a third of that before its first step."""

STOP_SECONDS = 25
"""Kept for a training to finish its step and save it."""

PATIENCE = 90
"""Seconds after which what was told to stop is killed."""

TIME_OVER = 3

FIGURES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Machine:
    """Where and for how long it trains."""

    work: Path
    device: str
    clock: Clock

    def tsd(self, log: Path, *arguments: object) -> int | None:
        """Run a verb of the command line; returns its exit status, None if the time was over."""
        if not self.clock.has(START_SECONDS):
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            print(f"$ tsd {' '.join(map(str, arguments))}", file=file, flush=True)
            command = [sys.executable, "-W", "ignore", "-m", "tsd.cli", *map(str, arguments)]
            return run_while(command, self.clock, STOP_SECONDS, file, cwd=self.work, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """The sources here come first; a training on the CPU sees no GPU."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {"PYTHONPATH": path}
        return environment | {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else environment


def run_while(command: Sequence[str], clock: Clock, stop_seconds: float, output: Any, **options: Any) -> int | None:
    """Run a program, and tell it to stop when no more than ``stop_seconds`` are left; returns its status, or None."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
    try:
        while process.poll() is None:
            if not clock.has(stop_seconds):
                process.send_signal(signal.SIGTERM)
                try:
                    status = process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    return None
                return status if status == 0 else None  # it may just have been done
            time.sleep(0.1)
        return process.returncode
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def prepare(work: Path, name: str, device: str, workers: int | None) -> None:
    """Copy what resolves experiments to ``work``, and ask for the device there.

    Raises:
        InputError: the folder was used for another device, or the suite's scenes are not generated.
    """
    note = work / "device"
    if note.exists() and note.read_text(encoding="utf-8").strip() != device:
        raise InputError(f"{work}: holds runs of another device, {note.read_text(encoding='utf-8').strip()}")
    load_suite(name, root=ROOT)
    suite_file = Path("params", "suites", f"{name}.yaml")
    content = read_yaml(ROOT / suite_file)
    if content["data"]["format"] != "generated":
        raise InputError(f"{suite_file}: data.format: expected generated, got {content['data']['format']}")
    for folder in ("params", "workflow/schemas"):
        shutil.copytree(ROOT / folder, work / folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "data.dvc", work / "data.dvc")
    resources = content.get("resources", {})
    own = {"gpu": int(device == "cuda"), "nodes": 1, "processes": 1}
    content["resources"] = resources | own | ({} if workers is None else {"workers": workers})
    write_text(work / suite_file, yaml.safe_dump(content, sort_keys=False))
    write_text(note, device + "\n")


def chosen_runs(name: str, experiments: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """The suite's runs of those experiments and seeds, all if none are named; in the current folder.

    Seed by seed, so that a first comparison is there soon.

    Raises:
        InputError: an experiment that the suite does not have.
    """
    suite = load_suite(name)
    digest = data_digest(suite)
    return [
        get_run(suite, experiment, seed, digest)
        for seed in seeds or suite.seeds
        for experiment in experiments or suite.experiments
    ]


def make_data(machine: Machine, name: str) -> bool:
    """Generate the suite's scenes if they are not there, and check them against their pin; False: no time.

    Raises:
        InputError: they can't be made, or are not the pinned ones.
    """
    log = machine.work / "logs" / name / "data.log"
    for arguments in (
        ("data", "generate", "--suite", name, "--workers", max(1, os.cpu_count() or 1)),
        ("data", "verify", "--suite", name),
    ):
        status = machine.tsd(log, *arguments)
        if status is None:
            return False
        if status:
            raise InputError(f"tsd {' '.join(map(str, arguments))} failed:\n{tail(log)}")
    return True


def do_run(machine: Machine, run: Run) -> str:
    """Train, predict and evaluate what is not yet done; returns ``done``, ``left`` or ``failed``."""
    title = f"{run.experiment} seed{run.seed}"
    log = machine.work / "logs" / run.suite.name / f"{run.experiment}-{run.digest}-seed{run.seed}.log"
    which = ("--suite", run.suite.name, "--experiment", run.experiment, "--seed", run.seed)
    metrics = run.eval_folder / "metrics.json"
    files = ("--annotations", run.suite.split("val")[0], "--predictions", run.predictions, "--output", metrics)
    stages = (
        (run.checkpoint, ("train", *which, "--no-mlflow")),
        (run.predictions, ("predict", *which)),
        (metrics, ("evaluate", "coco", *files, "--run-folder", run.folder, "--no-mlflow")),
    )
    for product, arguments in stages:
        if (machine.work / product).exists():
            continue
        status = machine.tsd(log, *arguments)
        if status is None:
            print(f"{title}: {progress(machine.work, run)}", flush=True)
            return "left"
        if status:
            print(f"{title}: tsd {arguments[0]} failed, see {log}:\n{tail(log)}", flush=True)
            return "failed"
    print(f"{title}: {progress(machine.work, run)}", flush=True)
    return "done"


def facts(work: Path, run: Run) -> dict[str, Any]:
    """How far a run is: its step, seconds per step, and when it is done its figures and device."""
    folder = work / run.folder
    lines = read_whole_lines(folder / "log.jsonl")
    schedule = run.settings["schedule"]
    found: dict[str, Any] = {
        "steps": schedule["epochs"] * math.ceil(run.suite.data["generate"]["train"] / schedule["batch_size"]),
        "step": max((line["step"] for line in lines), default=0),
    }
    if seconds := [line["seconds_per_step"] for line in lines if "seconds_per_step" in line]:
        found["seconds_per_step"] = statistics.median(seconds)
    for path in (folder / "checkpoints").glob("step_*.pth"):
        found["step"] = max(found["step"], int(path.stem.removeprefix("step_")))
    metrics = work / run.eval_folder / "metrics.json"
    if metrics.exists():
        figures = read_json(metrics)["metrics"]
        found |= {name: figures[name] for name in FIGURES}
        found["device"] = read_json(folder / "environment.json")["device"]
    return found


def progress(work: Path, run: Run) -> str:
    """The same in words."""
    found = facts(work, run)
    speed = f", {found['seconds_per_step']:.3f} s per step" if "seconds_per_step" in found else ""
    if "AP" in found:
        return f"done: AP {100 * found['AP']:.1f}, {found['device']}{speed}"
    if (work / run.checkpoint).exists():
        return f"trained{speed}, not yet evaluated"
    return f"step {found['step']} of {found['steps']}{speed}" if found["step"] else "not begun"


def publish(machine: Machine, runs: Sequence[Run], out: Path) -> None:
    """Copy the metrics of finished runs, and say of all how far they are."""
    summary = {"device": machine.device, "runs": {}}
    for run in runs:
        name = run.metrics_file.stem
        metrics = machine.work / run.eval_folder / "metrics.json"
        if metrics.exists():
            write_text(out / run.suite.name / f"{name}.json", metrics.read_text(encoding="utf-8"))
        summary["runs"][name] = facts(machine.work, run)
    write_json(out / "summary.json", summary)


def tail(log: Path, lines: int = 5) -> str:
    """The end of a log."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


def work_through(machine: Machine, args: argparse.Namespace) -> int:
    """Do the runs while there is time; returns the exit status."""
    prepare(machine.work, args.suite, args.device, args.workers)
    importlib.import_module("yapf")  # writes a cache in the home folder, which two trainings that begin at once spoil
    os.chdir(machine.work)
    runs = chosen_runs(args.suite, args.experiments, args.seeds)
    if not make_data(machine, args.suite):
        print("time over while the data was made")
        return TIME_OVER

    def one(run: Run) -> str:
        end = do_run(machine, run)
        publish(machine, runs, args.out)
        return end

    with ThreadPoolExecutor(args.at_once) as pool:
        ends = list(pool.map(one, runs))
    publish(machine, runs, args.out)
    for end in ("failed", "left"):
        names = [f"{run.experiment} seed{run.seed}" for run, own in zip(runs, ends, strict=True) if own == end]
        if names:
            print(f"{end}: {', '.join(names)}")
    print(f"{ends.count('done')} of {len(runs)} runs are done; metrics in {args.out}")
    return 1 if "failed" in ends else TIME_OVER if "left" in ends else 0


def main() -> int:
    """Parse, set the clock, and work."""
    parser = argparse.ArgumentParser(description="Train a suite of generated scenes in pieces.")
    parser.add_argument("--suite", required=True, help="a file of params/suites whose data.format is generated")
    parser.add_argument("--experiments", nargs="+", default=[], help="default: all of the suite")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="default: all of the suite")
    parser.add_argument("--minutes", type=float, default=9, help="that it may take (default: %(default)s)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--at-once", type=int, default=1, help="trainings that share the device (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes that load pictures, per training (default: the suite's)")
    parser.add_argument("--work", type=Path, help="default: benchmarks/.out/train-DEVICE")
    parser.add_argument("--out", type=Path, help="of metrics (default: benchmarks/.out/metrics-DEVICE)")
    args = parser.parse_args()
    default = ROOT / "benchmarks" / ".out"
    work = (args.work or default / f"train-{args.device}").resolve()
    args.out = (args.out or default / f"metrics-{args.device}").resolve()
    clock = Clock(args.minutes)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: clock.stop())
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("torch sees no GPU here; --device cpu trains on the CPU")
    try:
        return work_through(Machine(work, args.device, clock), args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
