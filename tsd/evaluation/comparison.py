"""A run's metrics beside those of its repetition: what is the same to the bit, and what differs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Content = Mapping[str, Any]

MACHINE = (
    "pretrained_sha256",
    "device",
    "processes",
    "threads",
    "cpu",
    "instructions",
    "kernels",
    "torch",
    "torchvision",
    "mmcv",
    "mmcv_operators",
    "mmdet",
    "numpy",
    "opencv",
    "python",
    "platform",
)
"""Of a run's environment, what decides its bits: the likeliest first. What else is in it comes after."""


@dataclass(frozen=True)
class Difference:
    """A thing that is told by both and is not the same, or by one only (None)."""

    name: str
    recorded: Any
    here: Any

    @property
    def change(self) -> float | None:
        """By how much a number differs."""
        numbers = all(isinstance(value, int | float) for value in (self.recorded, self.here))
        return self.here - self.recorded if numbers else None


@dataclass(frozen=True)
class LossDifference:
    """The first logged step whose loss differs."""

    step: int
    recorded: float
    here: float


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found."""

    predictions: Difference | None
    """SHA-256 of the predictions, if it differs."""
    metrics: tuple[Difference, ...]
    metrics_compared: int
    loss: LossDifference | None
    losses_recorded: int
    losses_compared: int
    machine: tuple[Difference, ...] | None
    """Versions and hardware that differ; None if the record does not tell them."""
    device: Difference | None
    """What the predictions were made on, if both tell it and it differs."""

    @property
    def identical(self) -> bool:
        """Whether all that was recorded of the results is the same to the bit."""
        return self.predictions is None and not self.metrics and self.loss is None


def compare(recorded: Content, here: Content) -> Comparison:
    """Compare two metrics files of one run, see :func:`tsd.engine.record.run_facts`.

    Args:
        recorded: the published one; what it does not tell is not compared.
        here: that of the repetition.
    """
    before, after = recorded["run"], here["run"]
    sha256 = Difference("predictions_sha256", before["predictions_sha256"], after["predictions_sha256"])
    known, found = dict(_figures(recorded)), dict(_figures(here))
    losses, own = dict(before.get("losses", [])), dict(after.get("losses", []))
    machine = None
    if "environment" in before:
        environment, now = before["environment"], after.get("environment", {})
        names = [name for name in MACHINE if name in environment]
        names += sorted(environment.keys() - set(MACHINE))
        machine = tuple(_differing(environment, now, names))
    device = Difference("device", before.get("runtime", {}).get("device"), after.get("runtime", {}).get("device"))
    told = device.recorded is not None and device.here is not None
    return Comparison(
        predictions=sha256 if sha256.recorded != sha256.here else None,
        metrics=tuple(_differing(known, found, list(known))),
        metrics_compared=len(known),
        loss=first_difference(losses, own),
        losses_recorded=len(losses),
        losses_compared=len(losses.keys() & own.keys()),
        machine=machine,
        device=device if told and device.recorded != device.here else None,
    )


def first_difference(recorded: Mapping[int, float], here: Mapping[int, float]) -> LossDifference | None:
    """The first step, logged in both, whose loss is not the same to the bit.

    Args:
        recorded: step → loss.
        here: step → loss.
    """
    steps = sorted(step for step in recorded.keys() & here.keys() if recorded[step] != here[step])
    return LossDifference(steps[0], recorded[steps[0]], here[steps[0]]) if steps else None


def _differing(recorded: Content, here: Content, names: list[str]) -> Iterator[Difference]:
    for name in names:
        if recorded[name] != here.get(name):
            yield Difference(name, recorded[name], here.get(name))


def _figures(content: Content) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all that a metrics file tells but for its run; of that the learning curve."""
    yield from _leaves(content["metrics"], "")
    yield from _leaves({name: value for name, value in content.items() if name not in ("metrics", "run")}, "")
    for line in content["run"].get("history", []):
        yield from _leaves({name: value for name, value in line.items() if name != "epoch"}, f"epoch {line['epoch']}.")


def _leaves(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _leaves(value, f"{prefix}{name}.")
    elif isinstance(content, list):
        for index, value in enumerate(content):
            name = f" ({value['name']})" if isinstance(value, Mapping) and "name" in value else ""
            yield from _leaves(value, f"{prefix}{index}{name}.")
    else:
        yield prefix.removesuffix("."), content
