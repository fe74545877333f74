"""The files of a run → its run in MLflow.

The files are the truth. These functions are idempotent: they bring MLflow in step, and doing it again changes nothing,
also where several processes do it at once. A process of its own calls them (:mod:`tsd.tracking.process`).
"""

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tsd.engine.run_files import read_environment, read_experiment, read_figures, read_log
from tsd.status import read_status
from tsd.tracking.store import KEY, connect, experiment_id, nothing, parent_of, the_run

BATCH = 900
"""Metrics per request: MLflow takes 1000 things in one, tags among them."""

LOGGED = "tsd.logged"
"""Tag of a run: the newest step of each curve that is there."""

ARTIFACTS = "tsd.artifacts"
"""Tag of a run: size and time of each file that was uploaded."""


def sync_run(folder: str | Path, uri: str, moved: Callable[[], None] = nothing) -> str:
    """Bring MLflow in step with a run's folder; returns the MLflow run's id.

    Lines of ``log.jsonl`` after the newest checkpoint are left for later: a resumed training writes them again.

    Args:
        folder: the run's folder.
        uri: of the store.
        moved: is called after each request that brought something.

    Raises:
        InputError: one of the run's files is damaged; names it.
        Exception: whatever MLflow raises.
    """
    folder = Path(folder)
    while True:
        status = read_status(folder) or {}
        run_id = _sync(folder, uri, status, moved)
        if (read_status(folder) or {}) == status:  # else an older state was just put over a newer one
            return run_id


def _sync(folder: Path, uri: str, status: dict[str, Any], moved: Callable[[], None]) -> str:
    from mlflow.entities import Param, RunTag

    described, environment = read_experiment(folder), _environment(folder)
    client = connect(uri)
    root = folder.resolve().parents[5]
    number = experiment_id(client, f"tsd-{described['suite']}", root, uri)
    key = f"{described['suite']}/{described['experiment']}/{described['digest']}/seed{described['seed']}"
    name = f"{described['experiment']} seed{described['seed']}"
    run = the_run(client, number, KEY, key, name=name, started=_milliseconds(status.get("started")))
    run_id, known = run.info.run_id, run.data.tags
    params = {name: str(value)[:6000] for name, value in _flatten(described["params"])}
    new = [Param(name, value) for name, value in params.items() if name not in run.data.params]
    tags = _tags(described, environment, status)
    if rows := dict(reversed([row.split("/", 1) for row in described.get("tables", [])])):
        tags |= rows
        parents = (parent_of(client, number, row.split("/")[0]) for row in described["tables"])
        if (parent := next(filter(None, parents), None)) is not None:
            tags["mlflow.parentRunId"] = parent
    changed = [RunTag(name, value) for name, value in tags.items() if known.get(name) != value]
    for start in range(0, max(len(new), 1), 100):
        client.log_batch(run_id, params=new[start : start + 100], tags=[] if start else changed)
    if "error" in known and "error" not in tags:
        client.delete_tag(run_id, "error")
    _log_curves(client, run_id, _curves(folder, status, known.get(LOGGED)), known.get(LOGGED), moved)
    _log_results(client, run_id, folder, run.data.metrics)
    _upload(client, run_id, folder, _files(folder), known.get(ARTIFACTS), moved)
    _set_status(client, run.info, status)
    return str(run_id)


def _set_status(client: Any, info: Any, status: dict[str, Any]) -> None:
    """Status and times of the run as its files have them, not as they are when MLflow is told."""
    state, ended = status.get("status", "RUNNING"), _milliseconds(status.get("ended"))
    if state == "RUNNING":
        if info.status != state:
            client.update_run(info.run_id, status=state)
    elif info.status != state or (ended is not None and info.end_time != ended):
        client.set_terminated(info.run_id, status=state, end_time=ended)


def _curves(folder: Path, status: dict[str, Any], before: str | None) -> list[Any]:
    """The figures of ``log.jsonl`` that MLflow lacks."""
    from mlflow.entities import Metric

    last = _last_step(folder, status)
    done: dict[str, int] = json.loads(before) if before else {}
    return [
        Metric(_name(name), float(value), int(line["time"] * 1000), line["step"])
        for line in read_log(folder)
        for name, value in line.items()
        if line["step"] <= last
        and name not in ("time", "step")
        and isinstance(value, (int, float))
        and line["step"] > done.get(_name(name), -1)
    ]


def _log_curves(client: Any, run_id: str, metrics: list[Any], before: str | None, moved: Callable[[], None]) -> None:
    from mlflow.entities import RunTag

    done: dict[str, int] = json.loads(before) if before else {}
    for start in range(0, len(metrics), BATCH):
        batch = metrics[start : start + BATCH]
        done |= {metric.key: metric.step for metric in batch}
        # MLflow stores the tag after the metrics. Killed between them, it gets those again, and keeps them once.
        client.log_batch(run_id, metrics=batch, tags=[RunTag(LOGGED, json.dumps(done, sort_keys=True))])
        moved()


def _last_step(folder: Path, status: dict[str, Any]) -> float:
    """Newest step that a resumed training will not do again."""
    if status.get("status") == "FINISHED":
        return float("inf")
    return newest_step(folder)


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint; 0 without one."""
    saved = [int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*.pth")]
    return max(saved, default=0)


def newest_metrics(folder: Path) -> Path | None:
    """The file of the newest evaluation, if there is one."""
    return max(folder.glob("eval/*/metrics.json"), key=lambda path: path.stat().st_mtime, default=None)


def _log_results(client: Any, run_id: str, folder: Path, present: dict[str, float]) -> None:
    from mlflow.entities import Metric

    path = newest_metrics(folder)
    if path is None:
        return
    evaluated = int(path.stat().st_mtime * 1000)  # the file's, so that two processes log the same
    metrics = [
        Metric(_name(name), value, evaluated, 0)
        for name, value in read_figures(path).items()
        if present.get(_name(name)) != value
    ]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _files(folder: Path) -> list[Path]:
    """What is uploaded of a run."""
    newest = newest_metrics(folder)
    results = [newest, *sorted(newest.parent.glob("pictures/*.png"))] if newest else []
    names = ("config.py", "experiment.yaml", "environment.json", "log.jsonl")
    return [path for path in (*(folder / name for name in names), *results) if path.is_file()]


def sync_tables(folder: str | Path, uri: str, moved: Callable[[], None] = nothing) -> int:
    """Upload a suite's tables to their parent runs; returns how many tables are there.

    Args:
        folder: ``results/<suite>/tables``.
        uri: of the store.
        moved: is called after each file.
    """
    folder = Path(folder)
    client = connect(uri)
    number = experiment_id(client, f"tsd-{folder.parent.name}", folder.resolve().parents[2], uri)
    done = 0
    for path in sorted(folder.glob("*.md")):
        parent = parent_of(client, number, path.stem)
        if parent is None:
            continue
        run = client.get_run(parent)
        files = [path.with_suffix(f".{kind}") for kind in ("md", "csv", "tex")]
        files = [file for file in files if file.is_file()]
        _upload(client, parent, folder, files, run.data.tags.get(ARTIFACTS), moved)
        if run.info.status != "FINISHED":
            client.set_terminated(parent, status="FINISHED")
        done += 1
    return done


def _upload(
    client: Any, run_id: str, folder: Path, files: list[Path], before: str | None, moved: Callable[[], None]
) -> None:
    """Upload what changed; a tag remembers what is there."""
    seen = json.loads(before) if before else {}
    for path in files:
        name = str(path.relative_to(folder))
        stamp = [path.stat().st_size, int(path.stat().st_mtime)]
        if seen.get(name) != stamp:
            client.log_artifact(run_id, str(path), "pictures" if path.suffix == ".png" else None)
            seen[name] = stamp
            client.set_tag(run_id, ARTIFACTS, json.dumps(seen, sort_keys=True))
            moved()


def _tags(described: dict[str, Any], environment: dict[str, Any], status: dict[str, Any]) -> dict[str, str]:
    tags = {
        "suite": described["suite"],
        "experiment": described["experiment"],
        "seed": described["seed"],
        "table_rows": " ".join(described["tables"]),
        "config_hash": described["digest"],
        "data_digest": described["data_digest"],
        "recipe": described["recipe"],
        "git_commit": environment.get("git_commit"),
        "git_dirty": environment.get("git_dirty"),
        "mlflow.source.git.commit": environment.get("git_commit"),
        "slurm_job_id": environment.get("slurm_job_id"),
        "hostname": environment.get("hostname"),
        "error": status.get("error"),
    }
    return {name: str(value)[:5000] for name, value in tags.items() if value is not None}


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(name: str) -> str:
    """A metric name that MLflow takes: letters, digits and _ - . space / only."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


def _milliseconds(time: str | None) -> int | None:
    """Milliseconds since 1970 of a time as ``status.json`` has it."""
    return int(datetime.datetime.fromisoformat(time).timestamp() * 1000) if time else None


def _environment(folder: Path) -> dict[str, Any]:
    return read_environment(folder) if (folder / "environment.json").is_file() else {}
