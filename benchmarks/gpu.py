"""Everything about correctness and speed that needs a GPU: one command, one JSON file, under ten minutes.

    python benchmarks/gpu.py [--json results/gpu.json] [--minutes 9] [--go-on]
    python benchmarks/gpu.py --device cpu --quick        # shows that the script itself works, in a minute

Correctness first: every operator (``gpu_operators.py``), every kind of head and whole narrowed detectors
(``gpu_detectors.py``), each against the CPU in double precision, in double, single and where it applies half precision.
Then times at the paper's size: pooling (``pooling.py``), inference and training with and without TSD, also in mixed
precision (``detector.py``). The steps are ordered by worth. One that takes longer than what is left is not begun; with
``--go-on`` the next call does what the file lacks. The file is written after every step.

Exit status: 0, or 1 if something is wrong or failed; all other steps are done all the same.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from clock import Clock  # noqa: E402

from tsd.files import read_json, write_json  # noqa: E402

MM = ("mmcv", "mmdet", "mmengine")

PACKAGES = ("torch", "torchvision", "triton", "numpy", "onedl-mmcv", "onedl-mmdetection", "onedl-mmengine")

QUERY = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)

OTHERS = ("r101", "r101_dcn", "r152", "x101")
"""Backbones beside ResNet-50, as in Table 5."""


@dataclass(frozen=True)
class Options:
    """What every step needs to know."""

    device: torch.device
    quick: bool
    clock: Clock
    before: dict[str, Any] = field(default_factory=dict)
    """What an earlier call found, by step."""


@dataclass(frozen=True)
class Step:
    """Something to find out.

    Attributes:
        name: in the file.
        seconds: that it takes on an H100, with some to spare.
        run: does it; what it returns goes to the file. Checks are under ``checks``.
        quick: whether ``--quick`` does it too.
        needs: modules that must be there.
    """

    name: str
    seconds: float
    run: Callable[[Options], dict[str, Any]]
    quick: bool = True
    needs: tuple[str, ...] = ()


def steps() -> list[Step]:
    """All of them, the most worth first."""
    found = [
        Step("machine", 5, machine),
        Step("operators", 40, partial(checks, "operators", "gpu_operators", "operator_cases", 100), needs=MM),
        Step("heads", 30, partial(checks, "heads", "gpu_detectors", "head_cases", 70), needs=MM),
        Step("detectors", 40, partial(checks, "detectors", "gpu_detectors", "detector_cases", 100), needs=MM),
        Step("without waiting", 10, without_waiting),
        Step("pooling, float32", 20, partial(pooling, "float32")),
        detector_step("inference", 35),
        detector_step("training", 40),
        detector_step("training", 35, "--amp", "float16"),
        detector_step("training", 35, "--amp", "bfloat16"),
        detector_step("inference", 30, "--amp", "float16"),
        detector_step("inference", 30, "--amp", "bfloat16"),
        Step("pooling, float16", 15, partial(pooling, "float16"), quick=False),
        Step("pooling, bfloat16", 15, partial(pooling, "bfloat16"), quick=False),
        detector_step("training", 40, "--tf32"),
        detector_step("inference", 30, "--tf32"),
        detector_step("training", 40, "--amp", "float16", "--channels-last"),
        detector_step("inference", 30, "--score-threshold", "0.05"),
        *(detector_step("inference", 45, "--backbones", name) for name in OTHERS),
        *(detector_step("training", 60, "--backbones", name) for name in OTHERS),
        Step("profile, r50", 40, profile, quick=False, needs=MM),
    ]
    return found


# Facts.


def machine(options: Options) -> dict[str, Any]:
    """What it runs on; on a GPU also what it reaches, against which times can be held."""
    facts: dict[str, Any] = {"call": {"device": str(options.device), "quick": options.quick}}
    facts["python"], facts["platform"] = platform.python_version(), platform.platform()
    facts["cores"], facts["threads"] = os.cpu_count(), torch.get_num_threads()
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[name] = importlib.metadata.version(name)
    facts["torch build"] = torch.__version__
    facts["missing"] = [name for name in (*MM, "triton") if importlib.util.find_spec(name) is None]
    if importlib.util.find_spec("mmcv"):
        from tsd.ops.mmcv_ext import origin

        facts["operators"] = origin()
    if options.device.type == "cuda":
        about = torch.cuda.get_device_properties(options.device)
        facts["gpu"] = about.name
        facts["memory_gib"] = round(about.total_memory / 2**30, 1)
        facts["multiprocessors"] = about.multi_processor_count
        facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        facts["tf32"] = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "products": torch.backends.cuda.matmul.allow_tf32,
        }
        facts["before"] = nvidia_smi()
        facts["ceilings"] = ceilings(options.device)
        facts["after"] = nvidia_smi()
    return facts


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks and power as they are now, or why they can't be read."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"not readable": str(error)[:200]}
    return dict(zip(QUERY, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=False))


def ceilings(device: torch.device) -> dict[str, float]:
    """What memory and arithmetic reach: bytes read and written by a copy, and products of 8192 x 8192 matrices."""
    source = torch.randn(2**28, device=device)
    found = {"copy_tb_per_s": 2 * source.nbytes / _seconds(partial(torch.empty_like(source).copy_, source)) / 1e12}
    for name in ("float32", "bfloat16"):
        first, second = (torch.randn(8192, 8192, device=device, dtype=getattr(torch, name)) for _ in range(2))
        found[f"{name}_tflop_per_s"] = 2 * 8192**3 / _seconds(partial(torch.mm, first, second)) / 1e12
    return found


def _seconds(call: Callable[[], object], rounds: int = 10) -> float:
    """Median time of a call on the GPU."""
    times = []
    for turn in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if turn > 1:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


# Correctness.


def checks(step: str, module: str, function: str, most: float, options: Options) -> dict[str, Any]:
    """The cases of a module, for at most so many seconds; those of an earlier call that are correct are kept."""
    from gpu_check import check_all, wrong

    cases = getattr(importlib.import_module(module), function)(options.quick)
    before = options.before.get(step, {}).get("checks", {})
    kept = {name: entry for name, entry in before.items() if "not run" not in entry and not wrong({name: entry})}
    own = Clock(min(most, options.clock.left) / 60)
    todo = {name: case for name, case in cases.items() if name not in kept}
    found = kept | check_all(todo, options.device, lambda: options.quick or own.left > 0)
    skipped = [name for name, entry in found.items() if "not run" in entry]
    return {"checks": found, "wrong": wrong(found), "skipped": skipped}


def without_waiting(options: Options) -> dict[str, Any]:
    """Triton's pooling in both directions, in the mode in which waiting for the device is an error."""
    from pooling import OPTIONS, inputs

    from tsd.ops import deform_roi_pool

    if options.device.type != "cuda":
        return {"checked": False}
    features, rois, offset = inputs(options.device, torch.float32, 256)

    def both() -> None:
        pooled = deform_roi_pool(features, rois, offset, backend="triton", **OPTIONS)
        torch.autograd.grad(pooled.sum(), [offset, *features])

    both()  # compiles, and brings the geometry to the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"checked": True}


# Times.


def pooling(dtype: str, options: Options) -> dict[str, Any]:
    """``pooling.py``: ours against the usual ways."""
    from pooling import describe, measure

    number, picture, rounds = (8, (96, 64), 1) if options.quick else (1024, (1216, 800), 30)
    found = measure(options.device, getattr(torch, dtype), rounds, number, picture)
    print(describe(found))
    return {"times": found, "rois": number}


def detector_step(mode: str, seconds: float, *more: str) -> Step:
    """A step of ``detector.py``; ResNet-50 unless a backbone is named."""
    name = ", ".join([mode, *(word.removeprefix("--") for word in more if word not in ("--amp", "--backbones"))])
    return Step(name, seconds, partial(detectors, mode, more), quick=not more, needs=MM)


def detectors(mode: str, more: tuple[str, ...], options: Options) -> dict[str, Any]:
    """Baseline and TSD in turns."""
    import detector

    size = ["--rounds", "20", "--warm-up", "5"]
    if options.quick:
        size = ["--size", "96", "64", "--batch", "1", "--rounds", "1", "--warm-up", "0"]
    command = [mode, "--device", str(options.device), "--threads", str(torch.get_num_threads()), *size, *more]
    args = detector.parser().parse_args(command)
    detector.prepare(args)
    (backbone,) = args.backbones
    try:
        found = detector.compare(backbone, args)
    finally:
        torch.set_float32_matmul_precision("highest")
    print("  " + detector.describe(mode, backbone, found))
    clocks = {"clocks": nvidia_smi()} if options.device.type == "cuda" else {}
    return {"times": found, "command": " ".join(command), **clocks}


def profile(options: Options) -> dict[str, Any]:
    """Where inference spends its time."""
    import detector

    args = detector.parser().parse_args(["profile", "--device", str(options.device), "--rounds", "5", "--warm-up", "3"])
    detector.prepare(args)
    return {"operators": detector.profile("r50", args)}


# All of it.


def run_step(step: Step, options: Options) -> dict[str, Any]:
    """One step's entry in the file."""
    if missing := [name for name in step.needs if importlib.util.find_spec(name) is None]:
        return {"not run": f"{', '.join(missing)} not installed"}
    if not options.clock.has(0 if options.quick else step.seconds):
        return {"not run": "no time left"}
    start = time.perf_counter()
    try:
        found = step.run(options)
    except Exception:
        found = {"failed": traceback.format_exc()[-2000:]}
        print(found["failed"])
    finally:
        gc.collect()
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def is_done(entry: dict[str, Any] | None) -> bool:
    """Whether a step of an earlier call need not be run again."""
    again = {"failed", "not run"}
    return entry is not None and not again & set(entry) and not entry.get("skipped") and not entry.get("wrong")


def read_before(path: Path, device: str, quick: bool) -> dict[str, Any]:
    """What an earlier call of the same kind wrote."""
    found: dict[str, Any] = read_json(path)
    kind = found.get("machine", {}).get("call")
    if kind != {"device": device, "quick": quick}:
        sys.exit(f"{path}: is of another kind of call, {kind}: give another --json, or leave out --go-on")
    return found


def summary(result: dict[str, Any]) -> dict[str, list[str]]:
    """Names of steps by how they ended: ``wrong``, ``failed``, ``not run``."""
    return {
        "wrong": [f"{name}: {item}" for name, entry in result.items() for item in entry.get("wrong", [])],
        "failed": [name for name, entry in result.items() if "failed" in entry],
        "not run": [name for name, entry in result.items() if "not run" in entry or entry.get("skipped")],
    }


def main() -> int:
    """Run the steps; one that fails is recorded and the others go on."""
    parser = argparse.ArgumentParser(description="Correctness and speed on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="little of everything, on small pictures")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "gpu.json")
    parser.add_argument("--minutes", type=float, default=9, help="that it may take (default: %(default)s)")
    parser.add_argument("--go-on", action="store_true", help="keep what the file has, and do what it lacks")
    args = parser.parse_args()
    clock = Clock(args.minutes)
    result = read_before(args.json, args.device, args.quick) if args.go_on and args.json.exists() else {}
    options = Options(torch.device(args.device), args.quick, clock, result)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu --quick shows that the script works")
    if options.device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels then run here too
    torch.set_num_threads(min(4, os.cpu_count() or 1))
    for step in steps():
        if (args.quick and not step.quick) or (is_done(result.get(step.name)) and step.name != "machine"):
            continue
        print(f"== {step.name}", flush=True)
        found = run_step(step, options)
        if "not run" not in found or step.name not in result:  # what an earlier call found of it is kept
            result[step.name] = found
        print(f"   not run: {found['not run']}" if "not run" in found else f"   {found['seconds']} s", flush=True)
        write_json(args.json, result)
    ends = summary(result)
    for name, found in ends.items():
        if found:
            print(f"{name}: {', '.join(found)}")
    print(args.json)
    return 1 if ends["wrong"] or ends["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
