"""What ``slurm/profile.yaml`` asks for trainings in place of the suite."""

import pytest

from tests.doctor.test_slurm import A100, cluster, partition, profile, training

__all__ = ["cluster"]


@pytest.mark.parametrize(
    ("key", "lacking"),
    [
        ("mem_mb: 2000000", "2000000 MB of memory"),
        ("mem: 2TB", "2000000 MB of memory"),
        ("mem_mb_per_cpu: 100000", "3200000 MB of memory"),
        ("cpus_per_task: 256", "256 CPUs"),
        ("cpus_per_gpu: 32", "256 CPUs"),
        ("gpu: 32", "16 GPUs"),
        ("nodes: 5", "has not 5 nodes"),
        ("runtime: 4d", "and a training asks for 5760"),
    ],
)
def test_what_the_profile_sets_for_trainings_goes_before_the_suite(examined, cluster, key, lacking):
    cluster(A100)
    profile("slurm_partition: gpu", more=f"set-resources:\n  train_detector:\n    {key}")
    line = partition(examined("Slurm", training()))
    assert line.state == "error"
    assert lacking in line.finding
    assert "default-resources" not in line.finding


def test_what_the_profile_sets_may_be_less_than_the_suites_and_its_default_memory_is_not(examined, cluster):
    cluster("gpu|up|1-00:00:00|4|idle|16|100000|(null)|gpu:8")
    more = "set-threads:\n  train_detector: 16\nset-resources:\n  train_detector:\n    mem_mb: 90000\n    runtime: 1440"
    profile("slurm_partition: gpu", more=more)
    assert "16 CPUs and 90000 MB" in partition(examined("Slurm", training())).finding
    listed = ", ".join(f'"train_detector:{one}"' for one in ("mem_mb=90000", "runtime=1440"))
    listed = f'set-threads: ["train_detector=16"]\nset-resources: [{listed}]'
    profile("slurm_partition: gpu", more=listed)
    assert partition(examined("Slurm", training())).state == "ok"
    profile("slurm_partition: gpu", more=more.replace("90000", "200000"))
    line = partition(examined("Slurm", training()))
    assert "200000 MB of memory" in line.finding
    assert "Change set-resources in slurm/profile.yaml" in line.remedy


def test_a_formula_in_the_profile_is_not_compared(examined, cluster):
    cluster(A100)
    profile("slurm_partition: gpu", more="set-resources:\n  train_detector:\n    mem_mb: attempt * 8000")
    line = partition(examined("Slurm", training()))
    assert line.state == "warning"
    assert "mem_mb of train_detector is 'attempt * 8000'" in line.finding
