"""Two processes do what one does with the same pictures (gloo, CPU, double precision, frozen BN)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT, project_with_scenes

WORKER = ROOT / "tests" / "engine" / "distributed_worker.py"
TOLERANCE = 1e-6
"""mmdet computes the RPN's classification loss in single precision whatever the model's."""

EXPERIMENTS = ["baseline", "tsd_pc", "d_s16", "d_head", "mask_r50", "cascade_r50_tsd"]
FIXED = ["baseline", "tsd_joint"]
"""What is divided by numbers of samples only, which are the same in each picture; M_loc divides by positives."""

WITHOUT_TRUTH = ["baseline", "tsd_pc", "mask_r50_tsd"]


def suite_of(experiment: str, norm_sync: bool) -> dict:
    """The tiny suite with one experiment, frozen BN and plain SGD."""
    suite = yaml.safe_load((ROOT / "params" / "suites" / "tiny.yaml").read_text())
    suite["override"]["backbone"]["norm"] = "frozen_bn"
    suite["override"]["schedule"] |= {"optimizer": "sgd", "lr": 0.02}
    suite["override"]["norm_sync"] = norm_sync
    suite["experiments"] = [experiment]
    suite.pop("tables")
    return suite


def train(folder: Path, out: Path, world: int, suites: list[str]) -> None:
    """Three steps of every suite, in ``world`` processes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), str(world), out, *suites],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every process saved, by suite and number of processes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project_with_scenes(tmp_path_factory.mktemp("distributed") / "project", patch)
    both = {f"{name}-sync": suite_of(name, True) for name in EXPERIMENTS} | {"tsd_pc-own": suite_of("tsd_pc", False)}
    fixed = {f"{name}-fixed": suite_of(name, True) for name in FIXED}  # the same draws everywhere
    for suite in fixed.values():
        suite["override"]["schedule"]["warmup_epochs"] = 0  # it counts what is seen at a time, not steps
    accumulated = {name.replace("-fixed", "-accumulate"): suite for name, suite in fixed.items()}
    two = {f"{name}-sync-empty": suite_of(name, True) for name in WITHOUT_TRUTH}
    two |= {f"{name}-own-empty": suite_of(name, False) for name in WITHOUT_TRUTH}
    for name, suite in (both | two | fixed | accumulated).items():
        (folder / "params" / "suites" / f"{name}.yaml").write_text(yaml.safe_dump(suite))
    out = folder / "out"
    out.mkdir()
    train(folder, out, 1, [*both, *fixed, *accumulated])
    train(folder, out, 2, [*both, *two, *fixed])

    def load(name: str, world: int) -> list[dict]:
        return [torch.load(out / f"{name}-{rank}of{world}.pth", weights_only=True) for rank in range(world)]

    return load


def mean_losses(processes: list[dict]) -> list[dict[str, float]]:
    """Losses of each step, averaged over the processes (accuracies left out)."""
    return [
        {name: sum(step[name] for step in steps) / len(steps) for name in steps[0] if "loss" in name}
        for steps in zip(*(process["losses"] for process in processes), strict=True)
    ]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_processes_are_one(results, experiment):
    (one,), two = results(f"{experiment}-sync", 1), results(f"{experiment}-sync", 2)
    for step, (expected, got) in enumerate(zip(mean_losses([one]), mean_losses(two), strict=True)):
        assert got == pytest.approx(expected, abs=TOLERANCE), f"step {step}"
    for name, weight in one["weights"].items():
        assert torch.equal(two[0]["weights"][name], two[1]["weights"][name]), name
        torch.testing.assert_close(two[0]["weights"][name], weight, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("experiment", FIXED)
def test_two_processes_are_gradient_accumulation(results, experiment):
    """With normalisers that are fixed, four pictures at once, two in each of two processes, and twice two are one."""
    (whole,), two = results(f"{experiment}-fixed", 1), results(f"{experiment}-fixed", 2)
    (parts,) = results(f"{experiment}-accumulate", 1)
    halves = [{"losses": parts["losses"][half::2]} for half in range(2)]
    for step, expected in enumerate(mean_losses([whole])):
        for other in (mean_losses(two)[step], mean_losses(halves)[step]):
            assert other == pytest.approx(expected, abs=TOLERANCE), f"step {step}"
    for name, weight in whole["weights"].items():
        for other in (two[0], parts):
            torch.testing.assert_close(other["weights"][name], weight, atol=TOLERANCE, rtol=TOLERANCE)


def test_without_it_each_process_divides_by_its_own_counts(results):
    expected, got = mean_losses(results("tsd_pc-own", 1))[0], mean_losses(results("tsd_pc-own", 2))[0]
    assert any(abs(got[name] - expected[name]) > 1e-4 for name in expected)


@pytest.mark.parametrize("mode", ["sync", "own"])
@pytest.mark.parametrize("experiment", WITHOUT_TRUTH)
def test_a_process_without_ground_truth_neither_hangs_nor_fails(results, experiment, mode):
    two = results(f"{experiment}-{mode}-empty", 2)
    for name, weight in two[0]["weights"].items():
        assert torch.equal(two[1]["weights"][name], weight), name
    assert two[0]["losses"][0]["loss_rpn_bbox"] == 0
    assert two[1]["losses"][0]["loss_rpn_bbox"] > 0
