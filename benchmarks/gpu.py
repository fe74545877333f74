"""Everything about speed and correctness that needs a GPU, in one command and one JSON file, in under ten minutes.

    python benchmarks/gpu.py [--json results/gpu.json]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --device cpu --quick        # shows that the script itself works

Needs torch with CUDA and Triton, and of this project only the sources: run it at the repository's root. What is not
installed (mmdet and mmcv's CUDA operators) is gone without and named in the result. The steps: correctness of the
Triton backend against the ``torch`` backend in double precision and its rounding in the others; that pooling does not
wait for the device; pooling against the usual ways (``pooling.py``); where mmdet runs, inference and training with and
without TSD (``detector.py``).
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from pooling import OPTIONS, inputs, measure  # noqa: E402

from tsd.ops import deform_roi_pool  # noqa: E402

LIMITS = {"float64": 1e-10, "float32": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}
"""Largest difference to the reference, relative to its largest value, that counts as correct."""


def machine(device: torch.device) -> dict[str, Any]:
    """What it runs on."""
    triton = importlib.util.find_spec("triton")
    facts = {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__}
    facts["triton"] = __import__("triton").__version__ if triton else "not installed"
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    facts["missing"] = [name for name in ("mmdet", "mmcv", "mmengine") if importlib.util.find_spec(name) is None]
    return facts


def gradients(
    backend: str, features: list[torch.Tensor], rois: torch.Tensor, offset: torch.Tensor
) -> list[torch.Tensor]:
    """Pooled features, gradient of the offset and of each map, for a fixed gradient of the output."""
    features = [feature.detach().requires_grad_() for feature in features]
    offset = offset.detach().requires_grad_()
    pooled = deform_roi_pool(features, rois, offset, backend=backend, **OPTIONS)
    weight = torch.linspace(-1, 1, pooled.numel(), device=pooled.device, dtype=torch.float64).view(pooled.shape)
    return [pooled.detach(), *torch.autograd.grad(pooled, [offset, *features], weight.to(pooled.dtype))]


def correctness(device: torch.device, number: int, picture: tuple[int, int]) -> dict[str, Any]:
    """Largest relative difference of the Triton backend to the reference, by precision and by order of summation."""
    found = {}
    for name, limit in LIMITS.items():
        features, rois, offset = inputs(device, getattr(torch, name), number, picture)
        if name == "float64":
            rois, offset = rois.double(), offset.double()
        reference = [feature.detach().double() for feature in features]
        exact = gradients("torch", reference, rois.double(), offset.double())
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            got = gradients("triton", features, rois, offset)
            torch.use_deterministic_algorithms(False)
            worst = max(
                float((ours.double() - theirs).abs().max() / theirs.abs().max())
                for ours, theirs in zip(got, exact, strict=True)
                if theirs.abs().max() > 0
            )
            key = f"{name}, {'fixed order' if deterministic else 'atomics'}"
            found[key] = {"worst": worst, "limit": limit, "correct": worst <= limit}
            print(f"  {key:24s} worst relative difference {worst:.1e} (limit {limit:.0e})", flush=True)
    return found


def without_waiting(device: torch.device, number: int) -> dict[str, Any]:
    """Run the Triton pooling forward and backward in the mode in which waiting for the device is an error."""
    if device.type != "cuda":
        return {"checked": False}
    features, rois, offset = inputs(device, torch.float32, number)
    gradients("triton", features, rois, offset)  # compiles, and brings the geometry to the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        leaves = [feature.detach().requires_grad_() for feature in features]
        pooled = deform_roi_pool(leaves, rois, offset, backend="triton", **OPTIONS)
        torch.autograd.grad(pooled.sum(), [offset, *leaves])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"checked": True}


def detectors(device: torch.device, quick: bool) -> dict[str, Any]:
    """``detector.py`` in its own processes: inference and training, single and half precision."""
    missing = [name for name in ("mmdet", "mmcv", "mmengine") if importlib.util.find_spec(name) is None]
    if missing:
        return {"not run": f"{', '.join(missing)} not installed"}
    jobs = {
        "inference": ["inference", "--backbones", "r50", "r101", "r101_dcn", "r152", "x101"],
        "inference, float16": ["inference", "--backbones", "r50", "x101", "--amp", "float16", "--channels-last"],
        "training": ["training", "--backbones", "r50"],
        "training, float16": ["training", "--backbones", "r50", "--amp", "float16", "--channels-last"],
    }
    if quick:
        jobs = {"inference": ["inference", "--size", "128", "96"]}
    found = {}
    for name, arguments in jobs.items():
        out = ROOT / "results" / "benchmark.json"
        out.parent.mkdir(exist_ok=True)
        rounds = ["--rounds", "1" if quick else "10", "--warm-up", "1" if quick else "3"]
        command = [sys.executable, str(ROOT / "benchmarks" / "detector.py"), *arguments, *rounds]
        done = subprocess.run([*command, "--device", str(device), "--json", str(out)], capture_output=True, text=True)
        print(done.stdout, end="", flush=True)
        found[name] = json.loads(out.read_text()) if done.returncode == 0 else {"failed": done.stderr[-2000:]}
        out.unlink(missing_ok=True)
    return found


def main() -> None:
    """Run every step; one that fails is recorded and the others go on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few RoIs and small pictures")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "gpu.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu --quick with TRITON_INTERPRET=1 shows that the script works")
    number = 2 if args.quick else 1024
    picture = (96, 64) if args.quick else (1216, 800)
    dtypes = ["float32"] if args.quick else ["float32", "float16", "bfloat16"]
    steps: dict[str, Callable[[], Any]] = {
        "machine": lambda: machine(device),
        "correctness": lambda: correctness(device, number, picture),
        "without waiting": lambda: without_waiting(device, number),
        "pooling": lambda: {
            name: measure(device, getattr(torch, name), 1 if args.quick else 20, number, picture) for name in dtypes
        },
        "detectors": lambda: detectors(device, args.quick),
    }
    result: dict[str, Any] = {}
    for name, step in steps.items():
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        try:
            result[name] = step()
        except Exception:
            result[name] = {"failed": traceback.format_exc()[-2000:]}
        print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, found in result.items() if "failed" in found]
    checks = {} if "failed" in result["correctness"] else result["correctness"]
    wrong = [key for key, entry in checks.items() if not entry["correct"]]
    print(
        f"{args.json}" + (f"; failed: {', '.join(failed)}" if failed else "") + (f"; wrong: {wrong}" if wrong else "")
    )
    sys.exit(1 if failed or wrong else 0)


if __name__ == "__main__":
    main()
