"""What a run says of its machine."""

import json

import pytest

from tsd.engine.environment import CPUINFO, cpu_name, environment, instructions
from tsd.engine.record import losses

TWO_CPUS = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu sse2 avx2 fma avx512_notthis

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


def test_a_cpu_is_told_by_name_numbers_and_instructions(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(TWO_CPUS)
    assert cpu_name(path) == "AMD EPYC (family 25, model 1, stepping 1)"
    assert instructions(path) == ["avx2", "fma"]


def test_a_machine_without_cpuinfo_has_a_name_too(tmp_path):
    assert cpu_name(tmp_path / "none")
    assert instructions(tmp_path / "none") == []


@pytest.mark.skipif(not CPUINFO.exists(), reason="no /proc/cpuinfo")
def test_this_machine():
    facts = environment()
    assert facts["cpu"]
    assert facts["kernels"]
    assert facts["threads"] >= 1
    assert {"torch", "torchvision", "numpy", "opencv"} <= facts.keys()
    json.dumps(facts)


def test_losses_are_those_of_logged_steps_in_full_precision():
    lines = [{"step": 10, "loss": 0.1 + 0.2, "lr": 1.0}, {"epoch": 1, "val/AP": 0.3}, {"step": 20, "loss": 0.25}]
    assert losses(lines) == [[10, 0.1 + 0.2], [20, 0.25]]
