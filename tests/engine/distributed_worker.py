"""One process of trainings that are spread over several: ``python distributed_worker.py RANK WORLD OUT SUITE …``.

Runs in a project, in double precision, three steps of each suite's only experiment on four pictures at a time, and
saves the losses of each step and the last weights. In a suite whose name ends in ``-empty`` the first process sees
pictures without ground truth; in one whose name ends in ``-accumulate`` one process sees them two at a time, and
sums their gradients before each step.
"""

import datetime
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.hooks import Hook

STEPS = 3


class Keep(Hook):
    """Collect losses; drop the ground truth of this process's pictures if told so."""

    def __init__(self, empty: bool) -> None:
        self.losses: list[dict[str, float]] = []
        self.empty = empty

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.empty:
            for sample in data_batch["data_samples"]:
                sample.gt_instances = sample.gt_instances[:0]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: float(value) for name, value in outputs.items()})


def register_halves() -> None:
    """A batch sampler whose batches are the halves of what the project's sees at once."""
    from mmengine.registry import DATA_SAMPLERS

    from tsd.engine.adapters.loading import ResumableBatchSampler

    @DATA_SAMPLERS.register_module()
    class HalvesBatchSampler(ResumableBatchSampler):
        def __init__(self, sampler, batch_size):
            super().__init__(sampler, 2 * batch_size)

        def __len__(self):
            return 2 * super().__len__()

        def __iter__(self):
            for batch in super().__iter__():
                yield batch[: self.batch_size // 2]
                yield batch[self.batch_size // 2 :]


def nms_in_single_precision() -> None:
    """mmcv's CPU operator knows no other."""
    module = importlib.import_module("mmcv.ops.nms")
    own = module.ext_module.nms
    module.ext_module = SimpleNamespace(
        nms=lambda boxes, scores, **options: own(boxes.float(), scores.float(), **options)
    )


def train(name: str, rank: int, world: int, out: Path) -> None:
    """Train one suite and save what the test compares."""
    from tsd.engine.config import load_config
    from tsd.engine.identity import data_digest
    from tsd.engine.params import get_run, load_suite
    from tsd.engine.runner import StrictRunner

    suite = load_suite(name)
    (experiment,) = suite.settings
    config = load_config(get_run(suite, experiment, 0, data_digest(suite)))
    parts = 2 if name.endswith("-accumulate") else 1
    config.train_dataloader.batch_size = 4 // world // parts
    config.optim_wrapper.accumulative_counts = parts
    if parts == 2:
        config.train_dataloader.batch_sampler.type = "HalvesBatchSampler"
    config.train_cfg.max_epochs = 1
    config.train_cfg.val_interval = 9
    config.work_dir = str(out / f"log{rank}")
    config.experiment_name = f"{name}-{rank}"
    config.launcher = "pytorch" if world > 1 else "none"
    for key in ("val_dataloader", "val_evaluator", "val_cfg", "test_dataloader", "test_evaluator", "test_cfg"):
        config.pop(key)
    runner = StrictRunner.from_cfg(config)
    keep = Keep(name.endswith("-empty") and rank == 0)
    runner.register_hook(keep)
    runner.train()
    assert runner.iter == STEPS * parts
    content = {"losses": keep.losses, "weights": runner.weights(1, STEPS * parts)["state_dict"]}
    torch.save(content, out / f"{name}-{rank}of{world}.pth")


def main() -> None:
    rank, world, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
        limit = datetime.timedelta(seconds=120)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{out}/store", rank=rank, world_size=world, timeout=limit
        )
    nms_in_single_precision()
    register_halves()
    for name in sys.argv[4:]:
        train(name, rank, world, out)
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
