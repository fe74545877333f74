"""What a training tells while it runs: ``log.jsonl``, a progress bar, checkpoints, and a stop at the first NaN."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process, master_only
from mmengine.hooks import Hook
from tqdm import tqdm

from tsd.engine.stopping import StopRequest
from tsd.errors import DivergedError
from tsd.files import naming, read_whole_lines, write_lines

SHOWN = ("AP", "AP50", "AP50_val", "AP50_val_boxed")
"""Figures of an evaluation that the progress tells."""


class Stopped(SystemExit):
    """The training was told to end; its state is saved, and the same command goes on with it."""


class StartHook(Hook):
    """Call ``started()`` once the model holds the weights that its training goes on from."""

    def __init__(self, started: Callable[[], None]) -> None:
        self.started = started

    def before_train(self, runner: Any) -> None:
        self.started()


class StopHook(Hook):
    """End the training when a signal asked for it: after the step that is being done, its state saved.

    Only the first process stops by itself. The state after a step is the same in all; the others, which would leave
    the first waiting in the middle of a step, are ended by the launcher.

    Args:
        request: whether something asked for it.
        save: write the training's state after ``(epoch, step)``.
    """

    priority = "LOWEST"

    def __init__(self, request: StopRequest, save: Callable[[int, int], object]) -> None:
        self.request, self.save = request, save

    def before_train(self, runner: Any) -> None:
        """From now on a request is heard."""
        self.request.heard = True

    def after_train(self, runner: Any) -> None:
        self.request.heard = False

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if is_main_process() and (reason := self.request.reason):
            self.save(runner.epoch, runner.iter + 1)
            raise Stopped(f"{reason}: stopped after step {runner.iter + 1}, which is saved")

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if is_main_process() and (reason := self.request.reason):
            raise Stopped(f"{reason}: stopped in an evaluation; the step before it is saved")


class JournalHook(Hook):
    """Check every loss, log every ``log_steps`` steps and each evaluation, and show progress with ETA and losses.

    A line of ``log.jsonl`` holds the figures of one step (not an average over steps), so that a resumed training
    writes the same lines as one that was never stopped.

    Args:
        path: ``log.jsonl``.
        log_steps: a line for each so many steps.
        title: of the progress bar.
        logged: called with each step that has got a line and its loss, in the first process.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        path: Path,
        log_steps: int,
        title: str,
        logged: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        self.path, self.log_steps, self.title, self.logged = path, log_steps, title, logged
        self.bar: tqdm | None = None
        self.started = 0.0

    def before_train(self, runner: Any) -> None:
        """Drop the log lines of steps that will be done again, and open the progress bar."""
        self._truncate(runner.iter, evaluated=runner.epoch * len(runner.train_dataloader) >= runner.iter)
        interval = 0.5 if sys.stderr.isatty() else 20.0
        self.bar = tqdm(
            total=runner.max_iters,
            initial=runner.iter,
            desc=self.title,
            unit="step",
            mininterval=interval,
            disable=not is_main_process(),
        )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.started = time.perf_counter()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step = runner.iter + 1
        # On a GPU reading a loss waits for the step: only do it when a line is written.
        if step % self.log_steps and torch.cuda.is_available():
            return
        figures = {name: float(value.detach()) for name, value in self._mean(outputs).items()}
        wrong = [name for name, value in figures.items() if "loss" in name and not math.isfinite(value)]
        if wrong:
            lr = runner.optim_wrapper.get_lr()["lr"][0]
            raise DivergedError(
                f"{', '.join(wrong)} became {figures[wrong[0]]} at step {step} (epoch {runner.epoch + 1}), "
                f"learning rate {lr:g}; "
                "lower schedule.lr or lengthen the warm-up; the last checkpoint is from before that step"
            )
        assert self.bar is not None
        self.bar.set_postfix({"epoch": runner.epoch + 1, "loss": f"{figures['loss']:.3f}"}, refresh=False)
        self.bar.update(step - self.bar.n)
        if step % self.log_steps == 0:
            lr = runner.optim_wrapper.get_lr()["lr"][0]
            seconds = time.perf_counter() - self.started
            self._write(runner, step, {"lr": lr, **figures, "seconds_per_step": round(seconds, 4)})
            if is_main_process():
                self.logged(step, figures["loss"])

    def _mean(self, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The mean over processes, which is not finite if one of them is not."""
        if get_world_size() == 1:
            return outputs
        names = sorted(outputs)
        values = torch.stack([outputs[name].detach().float().reshape(()) for name in names])
        all_reduce(values, op="mean")
        return dict(zip(names, values, strict=True))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        figures = {f"val/{name}": value for name, value in (metrics or {}).items() if math.isfinite(value)}
        self._write(runner, runner.iter, figures)
        shown = [f"{name} {value:.3f}" for name, value in (metrics or {}).items() if name in SHOWN]
        if is_main_process():
            tqdm.write(f"{self.title}: epoch {runner.epoch}: {', '.join(shown)}", file=sys.stderr)

    def after_train(self, runner: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    @master_only
    def _write(self, runner: Any, step: int, figures: dict[str, float]) -> None:
        line = {"time": time.time(), "step": step, "epoch": runner.epoch, **figures}
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @master_only
    def _truncate(self, step: int, evaluated: bool) -> None:
        """Keep the lines up to a step; without its evaluation if that is yet to be done."""

        def kept(line: dict[str, Any]) -> bool:
            again = not evaluated and any(name.startswith("val/") for name in line)
            return bool(line["step"] < step or (line["step"] == step and not again))

        if self.path.exists():
            write_lines(self.path, filter(kept, read_whole_lines(self.path)))


class CheckpointHook(Hook):
    """Write the training state every ``every`` steps and after each epoch, then call ``saved(step)``."""

    priority = "LOWEST"

    def __init__(self, folder: Path, every: int, saved: Callable[[int], None]) -> None:
        self.folder, self.every, self.saved = folder, every, saved

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step = runner.iter + 1
        # The last step of an epoch is saved before the evaluation, so that stopping there loses nothing, and again with
        # the epoch counted as done after it, see `after_epoch_done`.
        if step % self.every == 0 or step % len(runner.train_dataloader) == 0:
            self._save(runner, runner.epoch, step)

    def after_epoch_done(self, runner: Any) -> None:
        """Called by ResumableTrainLoop when an epoch and its evaluation are done."""
        self._save(runner, runner.epoch, runner.iter)

    @master_only
    def _save(self, runner: Any, epoch: int, step: int) -> None:
        runner.save_training_state(self.folder, epoch, step)
        self.saved(step)
