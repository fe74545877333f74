"""The GPU's benchmark: what its comparisons tell apart, how it spends its time, and that all of it runs on a CPU."""

import json
import os
import subprocess
import sys

import gpu
import gpu_check
import pytest
import torch
from clock import Clock
from gpu_check import CPU, Case, Place, check_all, wrong

from tests.conftest import ROOT


def inputs(place, count=200):
    return place.put(torch.rand(count, generator=place.generator(), dtype=torch.float64), 1)


def square(place):
    return {"out": inputs(place) ** 2}


def found(case):
    return check_all({"case": case}, CPU)["case"]


def test_what_is_right_is_right_in_each_precision():
    entry = found(Case(square))
    assert entry["float64"] == {"worst": 0.0, "output": "out", "limit": 1e-10, "correct": True, "share": 1.0}
    assert entry["float32"]["correct"]
    assert 0 < entry["float32"]["worst"] < 1e-6
    assert entry["float32"]["cpu"] == entry["float32"]["worst"]


def test_a_difference_above_the_limit_is_wrong():
    entry = check_all({"case": Case(lambda place: {"out": square(place)["out"] * 1.001}, against=square)}, CPU)
    assert wrong(entry) == ["case, float64", "case, float32"]
    assert entry["case"]["float32"]["worst"] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("spoil", [lambda out: out * float("nan"), lambda out: out[:-1], lambda out: out / 0])
def test_what_is_not_finite_or_of_another_shape_is_wrong(spoil):
    entry = found(Case(lambda place: {"out": spoil(square(place)["out"])}, against=square))
    assert entry["float64"]["worst"] is None
    assert not entry["float64"]["correct"]


def test_numbers_that_rounding_decides_are_not_compared():
    """A step function: whoever rounds up by 1e-7 is elsewhere than the reference at the very edge, and not wrong."""

    def stairs(place, shift=0.0):
        x = inputs(place, 1000)
        edges = torch.arange(1000) % 100 == 0
        x = torch.where(edges.to(x.device), 0.5 * (1 + place.noise), x * 0.4)
        return {"out": torch.floor(2 * (x + shift))}

    entry = found(Case(lambda place: stairs(place, -1e-7), against=stairs))
    assert entry["float64"]["correct"]
    assert entry["float64"]["share"] == 0.99
    far = found(Case(lambda place: stairs(place, 0.45), against=stairs))
    assert not far["float64"]["correct"]


def test_a_draw_with_too_many_numbers_on_an_edge_gives_way_to_the_next():
    def sometimes(place):
        x = inputs(place)
        return {"out": (x * place.noise > 0).double() if place.seed < 2 else x}

    assert gpu_check.reference(Case(sometimes), 1e-5).seed == 2
    entry = check_all({"case": Case(lambda place: {"out": (inputs(place) * place.noise > 0).double()})}, CPU)
    assert "none of 8 draws is usable" in entry["case"]["error"]["message"]
    assert wrong(entry) == ["case, error"]


def test_a_reference_sees_what_is_stored_in_half_precision():
    def doubled(place):
        x = torch.rand(100, generator=place.generator(), dtype=torch.float64)
        x = x if place.stored is None else x.to(place.stored).double()
        return {"out": 2 * x.to(place.device, place.dtype)}

    entry = found(Case(doubled, {"float16": 1e-9}))
    assert entry["float16"]["worst"] == 0.0  # doubling is exact


def test_a_check_that_fails_is_recorded_and_the_others_go_on():
    def broken(place):
        raise ValueError("no kernel")

    entries = check_all({"first": Case(broken), "second": Case(square)}, CPU)
    assert entries["first"]["error"]["message"] == "ValueError: no kernel"
    assert wrong(entries) == ["first, error"]
    turns = iter([True, False])
    entries = check_all({"first": Case(square), "second": Case(square)}, CPU, lambda: next(turns))
    assert entries["second"] == {"not run": "no time left"}
    assert wrong(entries) == []


def test_suppression_with_equal_scores_is_judged_by_its_rules():
    from gpu_operators import _why_not_suppression as why

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.9, 0.5])
    for kept in ([0, 2], [1, 2]):
        assert why(boxes, scores, torch.tensor(kept), 0.5) is None
    assert "both kept" in why(boxes, scores, torch.tensor([0, 1, 2]), 0.5)
    assert "is dropped" in why(boxes, scores, torch.tensor([0]), 0.5)
    assert "out of order" in why(boxes, scores, torch.tensor([2, 0]), 0.5)


def step(name, seconds, run, **options):
    return gpu.Step(name, seconds, run, **options)


def run_main(monkeypatch, path, steps, *arguments):
    monkeypatch.setattr(gpu, "steps", lambda: steps)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--json", str(path), *arguments])
    status = gpu.main()
    return status, json.loads(path.read_text())


def machine(options):
    return {"call": {"device": "cpu", "quick": False}}


def test_steps_that_take_longer_than_what_is_left_are_named_and_done_by_the_next_call(tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    calls = []

    def note(name):
        def run(options):
            calls.append(name)
            if name != "first":  # what was found before is in the file already
                assert "first" in json.loads(path.read_text())
            return {"times": name}

        return run

    steps = [step("machine", 1, machine), step("first", 1, note("first")), step("long", 7200, note("long"))]
    steps += [step("needs", 1, note("needs"), needs=("no_such_module",)), step("last", 1, note("last"))]
    status, content = run_main(monkeypatch, path, steps)
    assert status == 0
    assert calls == ["first", "last"]
    assert content["long"] == {"not run": "no time left"}
    assert content["needs"] == {"not run": "no_such_module not installed"}
    status, content = run_main(monkeypatch, path, steps, "--go-on", "--minutes", "180")
    assert calls == ["first", "last", "long"]
    assert content["first"]["times"] == "first"
    assert content["long"]["times"] == "long"
    with pytest.raises(SystemExit, match="another kind of call"):
        run_main(monkeypatch, path, steps, "--go-on", "--quick")


def test_what_fails_or_is_wrong_is_in_the_exit_status_and_the_others_go_on(tmp_path, monkeypatch):
    def fails(options):
        raise RuntimeError("no kernel image")

    ends = [step("machine", 1, machine), step("a", 1, fails), step("b", 1, lambda _: {"times": 1})]
    status, content = run_main(monkeypatch, tmp_path / "a.json", ends)
    assert status == 1
    assert "no kernel image" in content["a"]["failed"]
    assert content["b"]["times"] == 1
    ends[1] = step("a", 1, lambda _: {"checks": {}, "wrong": ["nms, float32"]})
    assert run_main(monkeypatch, tmp_path / "b.json", ends)[0] == 1
    ends[1] = step("a", 1, lambda _: {"checks": {}, "wrong": []})
    assert run_main(monkeypatch, tmp_path / "c.json", ends, "--go-on")[0] == 0


def test_checks_that_were_correct_are_kept_and_the_rest_is_done(monkeypatch):
    import gpu_operators

    calls = []

    def case(name):
        return Case(lambda place: calls.append(name) or square(place))

    monkeypatch.setattr(gpu_operators, "operator_cases", lambda quick: {name: case(name) for name in "abc"})
    good = {"float64": {"worst": 0.0, "correct": True}}
    before = {
        "operators": {"checks": {"a": good, "b": {"not run": "no time left"}, "c": {"float64": {"correct": False}}}}
    }
    options = gpu.Options(CPU, False, Clock(9), before)
    content = gpu.checks("operators", "gpu_operators", "operator_cases", 60, options)
    assert set(calls) == {"b", "c"}
    assert content["checks"]["a"] == good
    assert content["wrong"] == content["skipped"] == []


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path):
    path = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--quick", "--json", path]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = json.loads(path.read_text())
    assert set(content) == {each.name for each in gpu.steps() if each.quick}
    assert not [name for name, entry in content.items() if {"failed", "not run"} & set(entry)]
    for name in ("operators", "heads", "detectors"):
        assert content[name]["checks"]
        assert content[name]["wrong"] == content[name]["skipped"] == []
    for name in ("inference", "training"):
        times = content[name]["times"]
        assert set(times["ms"]) == {"baseline", "tsd_pc"}
        assert times["ratio"] > 0


def test_a_place_draws_the_same_numbers_whatever_its_device_and_precision():
    wide, narrow = inputs(Place(seed=3)), inputs(Place(seed=3, dtype=torch.float32))
    assert torch.equal(wide.float(), narrow)
    assert not torch.equal(wide, inputs(Place(seed=4)))
    moved = inputs(Place(seed=3, noise=1e-3))
    torch.testing.assert_close((moved / wide - 1).abs(), torch.full_like(wide, 1e-3))
