"""Detectors at the paper's size with and without TSD: inference or a training step, time and peak memory.

    python benchmarks/detector.py inference [--backbones r50 r101 r101_dcn r152 x101] [--device cpu] [--threads 2]
    python benchmarks/detector.py training  [--backbones r50] [--device cuda] [--amp float16]
    python benchmarks/detector.py profile   [--backbones r50]

Networks of the suite ``coco`` with random weights, batch 1 (training: ``--batch``), pictures of 1216 x 800. Inference
is the network and the post-processing, as in the paper's Table 5; random scores are all below 0.05, so that
``--score-threshold 0.05`` leaves the network alone. Both detectors live in one process and take turns. Told are the
median time of each and the quartiles around it, the ratio of the medians, and the quartiles of the ratios by turn; on a
GPU also the peak memory of each, measured while the other is not there.
"""

import argparse
import contextlib
import json
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from pooling import quartiles

import tsd.models  # noqa: F401  registers the detectors
from tsd.engine.model import build_model
from tsd.engine.params import load_suite

ROOT = Path(__file__).resolve().parents[1]

EXPERIMENTS = {
    "r50": ("baseline", "tsd_pc"),
    "r101": ("baseline_r101", "tsd_pc_r101"),
    "r101_dcn": ("baseline_r101_dcn", "tsd_pc_r101_dcn"),
    "r152": ("baseline_r152", "tsd_pc_r152"),
    "x101": ("baseline_x101", "tsd_pc_x101"),
}
OBJECTS = 8
"""Per training picture."""

SHOWN = 14
"""Operators of a profile."""


def build(experiment: str, args: argparse.Namespace) -> torch.nn.Module:
    """A detector of the suite ``coco`` with random weights."""
    suite = load_suite("coco", root=ROOT)
    config = build_model(suite.settings[experiment], suite.num_classes, suite.recipe)
    if args.score_threshold is not None:
        config["test_cfg"]["rcnn"]["score_thr"] = args.score_threshold
    for part in ("rpn", "rcnn"):  # random pictures have no position
        config["train_cfg"][part]["sampler"] = {
            key: value for key, value in config["train_cfg"][part]["sampler"].items() if key not in ("seed", "stage")
        } | {"type": "RandomSampler"}
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(config))
    model.init_weights()
    model.to(args.device)
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def batch(args: argparse.Namespace, number: int) -> dict[str, list[Any]]:
    """Random pictures with random boxes."""
    generator = torch.Generator().manual_seed(0)
    width, height = args.size
    samples, pictures = [], []
    for _ in range(number):
        meta = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0), "img_id": 0}
        sample = DetDataSample(metainfo=meta)
        corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        side = 20 + torch.rand(OBJECTS, 2, generator=generator) * 300
        labels = torch.randint(0, 80, (OBJECTS,), generator=generator)
        sample.gt_instances = InstanceData(bboxes=torch.cat((corner, corner + side), dim=1), labels=labels)
        samples.append(sample)
        pictures.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
    return {"inputs": pictures, "data_samples": samples}


class Runner:
    """One detector and how to run it once."""

    def __init__(self, experiment: str, args: argparse.Namespace) -> None:
        self.args = args
        self.model = build(experiment, args)
        self.data = batch(args, args.batch if args.mode == "training" else 1)
        self.precision = None if args.amp == "none" else getattr(torch, args.amp)
        if args.mode == "training":
            self.model.train()
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6, momentum=0.9)
            self.scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=args.amp == "float16")
        else:
            self.model.eval()

    def __call__(self) -> None:
        mixed = (
            torch.autocast(torch.device(self.args.device).type, self.precision)
            if self.precision is not None
            else contextlib.nullcontext()
        )
        if self.args.mode != "training":
            with torch.inference_mode(), mixed:
                self.model.test_step(self.data)
            return
        self.optimizer.zero_grad()
        with mixed:
            losses = self.model(**self.model.data_preprocessor(self.data, True), mode="loss")
            loss, _ = self.model.parse_losses(losses)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def park(self) -> None:
        """Leave the GPU."""
        self.model.to("cpu")
        if self.args.mode == "training":
            self.optimizer.zero_grad()
            self.optimizer.state.clear()


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def compare(backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds of both detectors, their ratio, and on a GPU their peak MiB; with quartiles of the times."""
    names = EXPERIMENTS[backbone]
    runners = {name: Runner(name, args) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.rounds + args.warm_up):
        for name, runner in runners.items():
            synchronize(args.device)
            start = time.perf_counter()
            runner()
            synchronize(args.device)
            if turn >= args.warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [second / first for first, second in zip(*(times[name] for name in names), strict=True)]
    result: dict[str, Any] = {
        "ms": medians,
        "quartiles_ms": {name: quartiles(values) for name, values in times.items()},
        "ratio": medians[names[1]] / medians[names[0]],
        "ratio_quartiles": quartiles(ratios),
        "rounds": args.rounds,
    }
    if torch.device(args.device).type == "cuda":
        peaks = gpu_peaks(runners)
        result |= {"peak_mib": peaks, "peak_ratio": peaks[names[1]] / peaks[names[0]]}
    return result


def gpu_peaks(runners: dict[str, Runner]) -> dict[str, float]:
    """MiB that each takes at most, alone on the GPU."""
    peaks = {}
    for runner in runners.values():
        runner.park()
    for name, runner in runners.items():
        runner.model.to(runner.args.device)
        runner()  # the optimiser's state is there from the second step on
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        runner()
        torch.cuda.synchronize()
        peaks[name] = torch.cuda.max_memory_allocated() / 2**20
        runner.park()
    return peaks


def peak(backbone: str, args: argparse.Namespace) -> None:
    """Run one detector once and print this process's peak memory."""
    Runner(EXPERIMENTS[backbone][args.only], args)()
    print(f"{EXPERIMENTS[backbone][args.only]}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def profile(backbone: str, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Operators of inference by time, for each detector: their own milliseconds per picture, and calls."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    on_gpu = torch.device(args.device).type == "cuda"
    found = {}
    for name in EXPERIMENTS[backbone]:
        runner = Runner(name, args)
        for _ in range(args.warm_up):
            runner()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with record(activities=activities) as recorded:
            for _ in range(args.rounds):
                runner()
            synchronize(args.device)
        own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, own))
        found[name] = [
            {"operator": event.key[:80], "ms": getattr(event, own) / 1e3 / args.rounds, "calls": event.count}
            for event in events[:SHOWN]
        ]
        print(name)
        for row in found[name]:
            print(f"  {row['ms']:9.3f} ms {row['calls']:6d} calls  {row['operator']}")
    return found


def parser() -> argparse.ArgumentParser:
    """Options; other benchmarks parse theirs with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["inference", "training", "profile"])
    parser.add_argument("--backbones", nargs="+", default=["r50"], choices=list(EXPERIMENTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, nargs=2, default=(1216, 800), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--batch", type=int, default=2, help="pictures of a training step")
    parser.add_argument("--amp", default="none", choices=["none", "float16", "bfloat16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--tf32", action="store_true", help="on a GPU products of matrices too, not only convolutions")
    parser.add_argument("--score-threshold", type=float, help="default: the experiment's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=int, choices=[0, 1], help="one run of the baseline (0) or TSD (1): peak memory")
    parser.add_argument("--json", help="also write what was measured to this file")
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Before the first detector is built."""
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    init_default_scope("mmdet")
    MMLogger.get_instance("benchmark", log_level="WARNING")


def describe(mode: str, backbone: str, found: dict[str, Any]) -> str:
    """A line of what :func:`compare` found."""
    times = "   ".join(f"{name} {value:.1f} ms" for name, value in found["ms"].items())
    memory = f"   memory {found['peak_ratio']:.2f}" if "peak_ratio" in found else ""
    low, high = found["ratio_quartiles"]
    return f"{mode} {backbone}: {times}   ratio {found['ratio']:.3f} ({low:.3f} to {high:.3f}){memory}"


def main() -> None:
    """Measure and print a line per backbone."""
    args = parser().parse_args()
    prepare(args)
    if args.mode == "profile" or args.only is not None:
        for backbone in args.backbones:
            (profile if args.mode == "profile" else peak)(backbone, args)
        return
    found = {}
    for backbone in args.backbones:
        found[backbone] = compare(backbone, args)
        print(describe(args.mode, backbone, found[backbone]), flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": platform.platform(), "torch": torch.__version__, args.mode: found}, file, indent=1)


if __name__ == "__main__":
    main()
