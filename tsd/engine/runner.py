"""mmengine's Runner with strict checkpoints, and a training loop that resumes at any step.

Nothing random is saved: data order, augmentation and sampling are functions of (seed, position), so a resumed
training continues the same sequence and ends with the same weights as one that was never stopped.
"""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import LOOPS, RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner

from tsd.engine import checkpoint, weights
from tsd.engine.params import KEPT_CHECKPOINTS
from tsd.errors import DivergedError


@RUNNERS.register_module()
class StrictRunner(Runner):
    """Runner whose checkpoints hold tensors and plain types, and are only read so.

    The config's ``pretrained_backbone``, if there is one, names the ImageNet weights that a training starts from, see
    :func:`tsd.engine.weights.find_weights`.

    What mmengine's ``Runner`` does between building the model and the first step, and what it means here (0.10.12,
    ``runner/runner.py``):

    * ``__init__`` seeds, then builds the model, then wraps it: DDP sends process 0's parameters to the others and
      looks at ``requires_grad`` once, so that whatever freezes has to do it in the model's constructor, as mmdet's and
      our backbones do. ``runner.model`` is then the wrapper, not the detector.
    * ``train`` builds loader, optimizer and schedules, and calls ``before_run``. The optimizer gets frozen parameters
      too; without a gradient neither step nor weight decay touches them.
    * ``_init_model_weights`` then initialises every module anew, frozen ones and a backbone that was loaded before
      included: so weights are loaded there, after it. It draws from the generator that ``__init__`` seeded; each step
      seeds anew (``StatelessRandomHook``), so what it draws does not reach the steps.
    * ``load_or_resume`` follows, so that a checkpoint goes before the ImageNet weights.
    * ``ResumableTrainLoop`` calls ``model.train()`` before each epoch, where backbones set frozen layers back.
    """

    pretrained_sha256: str | None = None
    """Of the file of ImageNet weights that the training started from, resumed or not."""

    identity: dict[str, Any] | None = None
    """Which run it is (``Run.identity``): its checkpoints say so, and one that is resumed must."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        """As mmengine's; but where there is no GPU, DDP is not told to use one."""
        if self.distributed and model_wrapper_cfg is None and not torch.cuda.is_available():
            return MMDistributedDataParallel(model, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)

    def _init_model_weights(self) -> None:
        """As mmengine's, and then the ImageNet weights, unless a checkpoint is about to be resumed.

        Raises:
            InputError, CheckpointError: there is no such file, or it does not fit.
        """
        super()._init_model_weights()
        name = self.cfg.get("pretrained_backbone")
        if name is None or self._resume:
            return
        backbone = self._bare_model.get_submodule("backbone")
        if is_main_process():
            loaded = weights.load_pretrained(backbone, weights.find_weights(name))
            self.pretrained_sha256 = loaded.sha256
            print(loaded, file=sys.stderr)
        for value in backbone.state_dict().values():  # one process's file for all: another's could be another
            broadcast(value)

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", strict: bool = True, **_: Any) -> dict:
        """Load weights for evaluation; every key must fit.

        Raises:
            CheckpointError: see :func:`tsd.engine.checkpoint.load_model`.
        """
        return checkpoint.load_model(self._bare_model, Path(filename))

    def resume(self, filename: str, *_: Any, **__: Any) -> None:
        """Continue a training from a checkpoint written by :meth:`save_training_state`.

        Raises:
            CheckpointError: the file can't be trusted or belongs to another run.
        """
        path = Path(filename)
        content = checkpoint.load(path)
        checkpoint.load_model(self._bare_model, path, self.identity)
        self.pretrained_sha256 = content["meta"].get("pretrained_sha256")
        self.train_loop._epoch = content["meta"]["epoch"]
        self.train_loop._iter = content["meta"]["iter"]
        self.optim_wrapper.load_state_dict(content["optimizer"])
        for scheduler, state in zip(self.param_schedulers, content["param_schedulers"], strict=True):
            scheduler.load_state_dict(state)

    def save_training_state(self, folder: Path, epoch: int, step: int, keep: int = KEPT_CHECKPOINTS) -> Path:
        """Write all that resuming needs, then drop all but the newest ``keep`` checkpoints.

        Args:
            folder: the run's ``checkpoints``.
            epoch: epochs done.
            step: optimiser steps done.
            keep: checkpoints kept.

        Raises:
            DivergedError: a weight is NaN or infinite: every attempt would go on from it.
        """
        path = checkpoint.step_path(folder, step)
        content = self.weights(epoch, step)
        for name, value in content["state_dict"].items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DivergedError(
                    f"{name} is not finite after step {step} (epoch {epoch + 1}): nothing is saved; lower schedule.lr "
                    "or lengthen the warm-up; the last checkpoint is from before that step"
                )
        content["optimizer"] = self.optim_wrapper.state_dict()
        content["param_schedulers"] = [scheduler.state_dict() for scheduler in self.param_schedulers]
        checkpoint.save(path, content)
        for _, old in list(checkpoint.steps(folder))[keep:]:
            old.unlink()
        return path

    def weights(self, epoch: int, step: int) -> dict[str, Any]:
        """Weights and what they are, as plain data."""
        state = {key: value.detach().cpu() for key, value in self._bare_model.state_dict().items()}
        meta = {"epoch": epoch, "iter": step, "seed": self.seed, "config": self._config_text}
        if self.identity:
            meta["run"] = self.identity
        if self.pretrained_sha256:
            meta["pretrained_sha256"] = self.pretrained_sha256
        classes = self.cfg.train_dataloader.dataset.dataset.metainfo.classes
        return {"meta": meta | {"dataset_meta": {"classes": list(classes)}}, "state_dict": state}

    @cached_property
    def _config_text(self) -> str:
        """Formatting it takes seconds, and every checkpoint holds it."""
        return str(self.cfg.pretty_text)

    @property
    def _bare_model(self) -> torch.nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """Epochs of batches; after a resume the first epoch starts at the batch where the training stopped.

    An epoch ends with its evaluation; ``after_epoch_done`` of the hooks then writes the checkpoint, so that a
    training killed during the evaluation does the evaluation again.
    """

    def run(self) -> torch.nn.Module:
        self.runner.call_hook("before_train")
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
            if self.runner.val_loop is not None and due:
                self.runner.val_loop.run()
            self.runner.call_hook("after_epoch_done")
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        skip = getattr(self.dataloader.batch_sampler, "skip", None)
        if skip is not None:
            skip(done)
        elif done:
            raise RuntimeError("resuming inside an epoch needs ResumableBatchSampler as batch_sampler")
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
