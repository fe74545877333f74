"""What making a published run anew would do and cost, in a few lines; nothing is done."""

import math
from collections.abc import Iterator
from datetime import datetime

from tsd.data.generate import SceneSpec
from tsd.engine.params import Run, get_runs
from tsd.engine.published import Published
from tsd.engine.reproduce import PLACE, REPORT, is_to_generate, placed
from tsd.engine.resolve import Resolved
from tsd.files import read_json
from tsd.report.reproduction import minutes
from tsd.status import read_status

HEADLINE = ("AP", "AP50", "AP50_val")
"""Of the recorded figures, those that are named."""


def rehearse(found: Resolved, published: Published) -> str:
    """Settings, data, training, time and folder, a line each."""
    run, facts = placed(found, published), published.facts
    figures = [f"{name} {value:.4f}" for name in HEADLINE if (value := published.content["metrics"].get(name))]
    dirty = ", with changes that were not committed" if facts.get("git_dirty") else ""
    lines = {
        "published": f"{published.path}: {', '.join(figures)}",
        "code": f"commit {str(facts.get('git_commit'))[:8]}{dirty}",
        "settings": f"{found.origin}: digest {run.digest}, test digest {run.test_digest}",
        "data": _data(run),
        "weights": _weights(run, published),
        "training": ", ".join(_training(run)),
        "time": ", ".join(_time(run, published)),
        "compared": ", ".join(_compared(published)),
        "folder": f"{run.folder}, {'where it is gone on with' if run.folder.exists() else 'a new one'}",
    }
    return "\n".join([str(published.key), *(f"  {name:10s} {text}" for name, text in lines.items() if text)])


def _data(run: Run) -> str:
    data = run.suite.data
    if is_to_generate(run):
        spec = SceneSpec.from_dict(data["generate"])
        return f"{run.data_digest}: {spec.train} + {spec.val} scenes are generated in {data['folder']}"
    if data["format"] == "generated":
        return f"{run.data_digest}: the scenes in {data['folder']} are checked first"
    return f"{run.data_digest}: has to be here already, and is checked first"


def _weights(run: Run, published: Published) -> str:
    name, recorded = run.settings["backbone"]["pretrained"], published.pretrained_sha256
    if name is None:
        return "random ones by the seed"
    return f"{name}, {f'recorded SHA-256 {recorded}' if recorded else 'whose digest is not recorded'}"


def _training(run: Run) -> Iterator[str]:
    suite, schedule = run.suite, run.settings["schedule"]
    yield f"{schedule['epochs']} epochs of {schedule['batch_size']} pictures a step"
    if suite.data["format"] == "generated":
        steps = math.ceil(SceneSpec.from_dict(suite.data["generate"]).train / schedule["batch_size"])
        yield f"{schedule['epochs'] * steps} steps"
    processes = f"{run.processes} process{'es' if run.processes > 1 else ''}"
    yield f"{processes} on {run.resources['gpu'] or 'no'} GPU{'s' if run.resources['gpu'] > 1 else ''}"
    if not run.on_gpu:
        yield f"{run.resources['threads']} thread{'s' if run.resources['threads'] > 1 else ''} each"


def _time(run: Run, published: Published) -> Iterator[str]:
    """What finished trainings of the experiment or the suite took here, the suite's limit, and the predictions."""
    runs = get_runs(run.suite, run.data_digest)
    times = [(one.experiment, seconds) for one in runs if (seconds := _duration(one)) is not None]
    own = [seconds for experiment, seconds in times if experiment == run.experiment]
    if measured := [*own, *_repeated(run)] or [seconds for _, seconds in times]:
        number = f"{len(measured)} training{'s' if len(measured) > 1 else ''}"
        yield f"about {minutes(sum(measured) / len(measured))} to train, by {number} here"
    else:
        yield "training not measured here"
    yield f"at most {minutes(60 * run.resources['runtime'])} by the suite's limit"
    runtime = published.facts.get("runtime", {})
    if runtime.get("median_ms") and runtime.get("pictures"):
        yield f"{minutes(runtime['median_ms'] * runtime['pictures'] / 1000)} to predict, by the record"


def _duration(run: Run) -> float | None:
    """Seconds from the first start of a finished training to its end."""
    content = read_status(run.folder)
    if content is None or content["status"] != "FINISHED" or not content["ended"]:
        return None
    ended, started = (datetime.fromisoformat(content[key]) for key in ("ended", "started"))
    return (ended - started).total_seconds()


def _repeated(run: Run) -> Iterator[float]:
    """Seconds of the experiment's repetitions that were trained in one go."""
    for path in PLACE.glob(f"{run.suite.name}/{run.experiment}/{run.digest}/seed*/*/{REPORT}"):
        attempts = read_json(path)["attempts"]
        if len(attempts) == 1:
            yield attempts[0]["seconds"]


def _compared(published: Published) -> Iterator[str]:
    number = len(published.losses)
    yield f"{number} losses while it trains" if number else "no losses, for none are recorded"
    yield "predictions by SHA-256"
    yield "all figures"
    yield "machine and versions" if "environment" in published.facts else "no machine, for it is not recorded"
