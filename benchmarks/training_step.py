"""Seconds and peak memory of a training step of baseline and TSD + PC on the demo's scenes.

    python benchmarks/training_step.py [--steps 40] [--rounds 3]

Each detector runs in a process of its own, in turn, and the ratio is of the medians. Needs `make data` first.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

EXPERIMENTS = ("baseline", "tsd_pc")
WARM_UP = 5


def measure(experiment: str, steps: int) -> None:
    """Print median seconds per step and peak memory in MiB."""
    import torch
    from mmengine.hooks import Hook

    from tsd.engine.config import load_config
    from tsd.engine.identity import data_digest
    from tsd.engine.params import get_run, load_suite
    from tsd.engine.runner import StrictRunner

    torch.set_num_threads(1)
    suite = load_suite("demo")
    config = load_config(get_run(suite, experiment, 0, data_digest(suite)))
    for split in ("val", "test"):
        for part in ("cfg", "dataloader", "evaluator"):
            config[f"{split}_{part}"] = None
    times: list[float] = []

    class Done(Exception):
        pass

    class Clock(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.start = time.perf_counter()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            times.append(time.perf_counter() - self.start)
            if len(times) == steps + WARM_UP:
                raise Done

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Done):
        config.work_dir = folder
        runner = StrictRunner.from_cfg(config)
        runner.register_hook(Clock())
        runner.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": statistics.median(times[WARM_UP:]), "mib": peak}))


def main() -> None:
    """Measure in turn and print a table with the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=EXPERIMENTS)
    args = parser.parse_args()
    if args.only:
        return measure(args.only, args.steps)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in EXPERIMENTS}
    for _ in range(args.rounds):
        for name in EXPERIMENTS:
            command = [sys.executable, __file__, "--only", name, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "mib")}
        for name, runs in found.items()
    }
    for name, values in medians.items():
        print(f"{name:10s} {values['seconds']:.3f} s/step   peak {values['mib']:.0f} MiB")
    base, tsd = (medians[name] for name in EXPERIMENTS)
    print(f"tsd_pc / baseline: time {tsd['seconds'] / base['seconds']:.2f}, memory {tsd['mib'] / base['mib']:.2f}")


if __name__ == "__main__":
    main()
