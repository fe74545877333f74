"""What making a published run anew has shown, as lines to read and as plain data."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsd.evaluation.comparison import Comparison, Difference, LossDifference

SHOWN = 15
"""Figures that differ and are printed; the report has all."""


def minutes(seconds: float) -> str:
    """A time in words: ``4 min 50 s``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def report_content(
    name: str,
    published: Path,
    settings: str,
    recorded: Mapping[str, Any],
    here: Mapping[str, Any],
    found: Comparison,
    took: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as plain data.

    Args:
        name: ``SUITE/EXPERIMENT/seedK``.
        published: the metrics file that the run was compared with.
        settings: where the settings are from.
        recorded: ``run`` of that file.
        here: ``run`` of the repetition's.
        found: the comparison.
        took: attempts and seconds.
    """
    metrics = [asdict(one) | {"change": one.change} for one in found.metrics]
    return {
        "run": name,
        "published": str(published),
        "settings": settings,
        "digests": {key: here[key] for key in ("digest", "test_digest", "data_digest")},
        "identical": found.identical,
        "predictions_sha256": _both(recorded, here, "predictions_sha256"),
        "losses": {
            "recorded": found.losses_recorded,
            "compared": found.losses_compared,
            "first_difference": asdict(found.loss) if found.loss else None,
        },
        "metrics": {"compared": found.metrics_compared, "differences": metrics},
        "machine": None if found.machine is None else [asdict(one) for one in found.machine],
        "device_of_predictions": asdict(found.device) if found.device else None,
        "environment": here.get("environment", {}),
        "code": {key: _both(recorded, here, key) for key in ("git_commit", "git_dirty")},
        **took,
    }


def _both(recorded: Mapping[str, Any], here: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {"recorded": recorded.get(key), "here": here.get(key)}


def format_report(content: Mapping[str, Any], found: Comparison) -> str:
    """The report in lines: the verdict, then what differs and what may be why."""
    return "\n".join(_lines(content, found))


def _lines(content: Mapping[str, Any], found: Comparison) -> Iterator[str]:
    name = content["run"]
    weights = [one for one in found.machine or () if one.name == "pretrained_sha256"]
    if found.identical:
        yield f"{name}: identical to the bit: predictions, {found.metrics_compared} figures{_losses(found)}"
    else:
        yield f"{name}: DIFFERS from {content['published']}"
        yield from (f"  {line}" for line in [*_of_weights(weights), *_of_results(found)])
    yield from (f"  {line}" for line in _of_machine(content, found))
    yield f"  took {_took(content)}"


def _losses(found: Comparison) -> str:
    if not found.losses_recorded:
        return " (the file tells no losses)"
    return f" and {found.losses_compared} losses"


def _of_weights(weights: list[Difference]) -> Iterator[str]:
    for one in weights:
        yield f"weights     it started from other ones: recorded SHA-256 {one.recorded}, here {one.here}"


def _of_results(found: Comparison) -> Iterator[str]:
    if found.loss:
        yield f"losses      {of_loss(found.loss)}"
    elif found.losses_recorded:
        yield f"losses      {found.losses_compared} compared, all the same"
    else:
        yield "losses      the file tells none: where the training parts from the recorded one can't be said"
    if found.predictions:
        recorded, here = found.predictions.recorded, found.predictions.here
        yield f"predictions SHA-256 recorded {recorded[:16]}…, here {here[:16]}…"
    else:
        yield "predictions the same to the bit"
    yield f"figures     {len(found.metrics)} of {found.metrics_compared} differ{':' if found.metrics else ''}"
    yield from (f"  {one.name}: {_values(one)}" for one in found.metrics[:SHOWN])
    if len(found.metrics) > SHOWN:
        yield f"  and {len(found.metrics) - SHOWN} more, all of them in the report"


def of_loss(loss: LossDifference) -> str:
    """Where and by how much the losses differ first."""
    change = loss.here - loss.recorded
    return f"first differ at step {loss.step}: recorded {loss.recorded!r}, here {loss.here!r} ({change:+.3g})"


def _values(one: Difference) -> str:
    change = "" if one.change is None else f" ({one.change:+{'d' if isinstance(one.change, int) else '.3g'}})"
    return f"recorded {_text(one.recorded)}, here {_text(one.here)}{change}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "nothing" if value is None else str(value)


def _of_machine(content: Mapping[str, Any], found: Comparison) -> Iterator[str]:
    if found.machine is None:
        yield "machine     the file does not tell what CPU, instructions, threads and versions it was made with"
        if found.device:
            yield f"  device of the predictions: {_values(found.device)}"
        yield f"  here: {_here(content['environment'])}"
    elif not found.machine:
        yield "machine     and versions: as recorded"
    else:
        yield "machine     and versions differ from those recorded:"
        yield from (f"  {one.name}: {_values(one)}" for one in found.machine)
    commit, dirty = content["code"]["git_commit"], content["code"]["git_dirty"]
    changed = [f"{whose} with uncommitted changes" for whose in ("recorded", "here") if dirty[whose]]
    if commit["recorded"] != commit["here"] or changed:
        said = f"recorded {str(commit['recorded'])[:8]}, here {str(commit['here'])[:8]}"
        yield f"code        git commit {said}{''.join(f', {one}' for one in changed)}"


def _here(environment: Mapping[str, Any]) -> str:
    names = ("device", "cpu", "kernels", "threads", "processes", "torch")
    return ", ".join(f"{name} {environment[name]}" for name in names if name in environment)


def _took(content: Mapping[str, Any]) -> str:
    attempts = content["attempts"]
    known = [attempt["seconds"] for attempt in attempts if attempt["seconds"] is not None]
    training = minutes(sum(known))
    if len(attempts) > 1:
        training += f" in {len(attempts)} attempts"
    if killed := len(attempts) - len(known):
        training += f" (not counted: {killed} that {'was' if killed == 1 else 'were'} killed)"
    return f"{training} to train, {minutes(content['evaluation_seconds'])} to predict and evaluate"
