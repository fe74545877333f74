"""Detectors at the paper's size with and without TSD: inference or a training step, time and peak memory.

    python benchmarks/detector.py inference [--backbones r50 r101 r101_dcn r152 x101] [--device cpu] [--threads 2]
    python benchmarks/detector.py training  [--backbones r50] [--device cuda] [--amp float16]
    python benchmarks/detector.py profile   [--backbones r50]

Networks of the suite ``coco`` with random weights, batch 1 (training: ``--batch``), pictures of 1216 x 800. Inference
is the network and the post-processing, as in the paper's Table 5; random scores are all below 0.05, so that
``--score-threshold 0.05`` leaves the network alone. Both detectors live in one process and take turns; the ratio is of
the medians.
"""

import argparse
import contextlib
import json
import platform
import resource
import statistics
import time
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import tsd.models  # noqa: F401  registers the detectors
from tsd.engine.model import build_model
from tsd.engine.params import load_suite

EXPERIMENTS = {
    "r50": ("baseline", "tsd_pc"),
    "r101": ("baseline_r101", "tsd_pc_r101"),
    "r101_dcn": ("baseline_r101_dcn", "tsd_pc_r101_dcn"),
    "r152": ("baseline_r152", "tsd_pc_r152"),
    "x101": ("baseline_x101", "tsd_pc_x101"),
}
OBJECTS = 8
"""Per training picture."""


def build(experiment: str, args: argparse.Namespace) -> torch.nn.Module:
    """A detector of the suite ``coco`` with random weights."""
    suite = load_suite("coco")
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


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def compare(backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds of both detectors, their ratio, and on a GPU their peak MiB."""
    names = EXPERIMENTS[backbone]
    runners = {name: Runner(name, args) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, float] = {}
    on_gpu = torch.device(args.device).type == "cuda"
    for turn in range(args.rounds + args.warm_up):
        for name, runner in runners.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            synchronize(args.device)
            start = time.perf_counter()
            runner()
            synchronize(args.device)
            if turn >= args.warm_up:
                times[name].append(time.perf_counter() - start)
            if on_gpu:
                peaks[name] = torch.cuda.max_memory_allocated() / 2**20
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    result: dict[str, Any] = {"ms": medians, "ratio": medians[names[1]] / medians[names[0]]}
    if on_gpu:
        result |= {"peak_mib": peaks, "peak_ratio": peaks[names[1]] / peaks[names[0]]}
    return result


def peak(backbone: str, args: argparse.Namespace) -> None:
    """Run one detector once and print this process's peak memory."""
    Runner(EXPERIMENTS[backbone][args.only], args)()
    print(f"{EXPERIMENTS[backbone][args.only]}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def profile(backbone: str, args: argparse.Namespace) -> None:
    """Operators by time, for each detector."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    on_gpu = torch.device(args.device).type == "cuda"
    for name in EXPERIMENTS[backbone]:
        runner = Runner(name, args)
        for _ in range(args.warm_up):
            runner()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with record(activities=activities) as recorded:
            for _ in range(args.rounds):
                runner()
            synchronize(args.device)
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        print(name)
        print(recorded.key_averages().table(sort_by=order, row_limit=14, max_name_column_width=40))


def main() -> None:
    """Measure and print a line per backbone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["inference", "training", "profile"])
    parser.add_argument("--backbones", nargs="+", default=["r50"], choices=list(EXPERIMENTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, nargs=2, default=(1216, 800), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--batch", type=int, default=2, help="pictures of a training step")
    parser.add_argument("--amp", default="none", choices=["none", "float16", "bfloat16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--score-threshold", type=float, help="default: the experiment's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=int, choices=[0, 1], help="one run of the baseline (0) or TSD (1): peak memory")
    parser.add_argument("--json", help="also write what was measured to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope("mmdet")
    MMLogger.get_instance("benchmark", log_level="WARNING")
    if args.mode == "profile" or args.only is not None:
        for backbone in args.backbones:
            (profile if args.mode == "profile" else peak)(backbone, args)
        return
    found = {}
    for backbone in args.backbones:
        found[backbone] = compare(backbone, args)
        times = "   ".join(f"{name} {value:.1f} ms" for name, value in found[backbone]["ms"].items())
        memory = f"   memory {found[backbone]['peak_ratio']:.2f}" if "peak_ratio" in found[backbone] else ""
        print(f"{args.mode} {backbone}: {times}   ratio {found[backbone]['ratio']:.3f}{memory}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": platform.platform(), "torch": torch.__version__, args.mode: found}, file, indent=1)


if __name__ == "__main__":
    main()
