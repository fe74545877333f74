"""MLflow as a mirror of the files of a run.

The files are the truth: one idempotent function brings an MLflow run in step with its folder. It is called at
checkpoints, at the end, and by ``tsd mlflow sync``; a server that is down costs nothing but a later sync.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tsd.errors import InputError
from tsd.files import read_json, read_whole_lines, write_text

KEY = "tsd.key"
"""Tag that identifies a run: suite/experiment/digest/seed<k>."""

PARENT = "tsd.table"
"""Tag of a table's parent run. A run hangs under the first of its tables, and has a tag ``table3 = row`` of each."""

VIEW = "results"
"""Name of the run list's shared view, whose columns are the AP figures."""

_COLUMNS = (
    *(f"metrics.`{name}`" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    *(f"tags.`{name}`" for name in ("recipe", "git_commit", "data_digest")),
)

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
"""Stores that hold runs: a file, a server, or a server's data base."""

PENDING = "mlflow.pending"
BATCH = 1000
"""Metrics per request: the most that MLflow takes."""


@dataclass(frozen=True)
class SyncReport:
    """Run folders that are in step with MLflow now, and those that could not be brought so."""

    synced: list[Path] = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the sqlite file beside the repository; a relative sqlite path is made absolute.

    Raises:
        InputError: a file store, which MLflow no longer takes, or something that is no store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{(root / uri.removeprefix('sqlite:///')).resolve()}"
    if "://" not in uri or uri.startswith("file:"):
        raise InputError(
            f"MLFLOW_TRACKING_URI={without_password(uri)}: MLflow no longer takes file stores; use "
            "sqlite:///FILE.db or a server's http://…"
        )
    scheme = uri.split("://")[0].split("+")[0]
    if scheme not in SCHEMES:
        raise InputError(
            f"MLFLOW_TRACKING_URI={without_password(uri)}: expected one of {', '.join(SCHEMES)} before ://, got "
            f"{without_password(scheme)!r}"
        )
    return uri


def without_password(uri: str) -> str:
    """The URI as messages show it: without its user, password and options, however badly it is written."""
    scheme, separator, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    return f"{scheme}{separator}{rest if rest.startswith('/') else rest.rpartition('@')[2]}".partition("?")[0]


def init(root: Path, uri: str, experiments: list[str], tables: Mapping[str, str] | None = None) -> list[str]:
    """Create the store, its experiments, and in them a parent run per table.

    One process must do it before several write: of sqlite's schema, and so that each parent is there once.

    Args:
        root: the repository.
        uri: of the store.
        experiments: names of MLflow experiments.
        tables: names and titles of the tables.

    Returns:
        For each experiment the page of MLflow's UI that lists its runs with their AP columns, to be put behind the
        server's address.
    """
    client = _client(uri)
    pages = []
    for name in experiments:
        number = _experiment_id(client, name, root, uri)
        for table, title in (tables or {}).items():
            if _parent(client, number, table) is None:
                client.create_run(number, run_name=f"{table}: {title}", tags={PARENT: table})
        client.set_experiment_tag(number, f"mlflow.sharedViewState.{VIEW}", json.dumps({"selectedColumns": _COLUMNS}))
        pages.append(f"/#/experiments/{number}/runs?viewStateShareKey={VIEW}")
    return pages


def mirror(folder: Path, uri: str) -> bool:
    """Bring MLflow in step with a run's folder, and never raise: a failure leaves ``mlflow.pending`` in the folder."""
    pending = folder / PENDING
    try:
        sync_run(folder, uri)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        shown = without_password(uri)
        reason = reason.replace(uri, shown)
        print(f"MLflow at {shown} was not updated ({reason[:200]}); `tsd mlflow sync` will catch up", file=sys.stderr)
        with suppress(OSError):
            write_text(pending, f"{reason}\n")
        return False
    pending.unlink(missing_ok=True)
    return True


def sync_all(root: Path, uri: str, suite: str | None = None) -> SyncReport:
    """Mirror every run folder under ``results/`` (of one suite, or of all), and the tables to their parent runs."""
    report = SyncReport()
    for path in sorted((root / "results").glob(f"{suite or '*'}/runs/*/*/seed*/experiment.yaml")):
        (report.synced if mirror(path.parent, uri) else report.failed).append(path.parent)
    with suppress(Exception):  # as for runs: what fails is said there, and done by the next sync
        for folder in sorted((root / "results").glob(f"{suite or '*'}/tables")):
            _upload_tables(root, uri, folder)
    return report


def _upload_tables(root: Path, uri: str, folder: Path) -> None:
    client = _client(uri)
    number = _experiment_id(client, f"tsd-{folder.parent.name}", root, uri)
    for path in sorted(folder.glob("*.md")):
        if (parent := _parent(client, number, path.stem)) is not None:
            for kind in ("md", "csv", "tex"):
                client.log_artifact(parent, str(path.with_suffix(f".{kind}")))
            client.set_terminated(parent, status="FINISHED")


def _tagged(client: Any, experiment_id: str, tag: str, value: str) -> Any:
    """The MLflow run with that value of a tag; None if there is none."""
    found = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
    return found[0] if found else None


def _parent(client: Any, experiment_id: str, table: str) -> str | None:
    run = _tagged(client, experiment_id, PARENT, table)
    return str(run.info.run_id) if run else None


def find_run(uri: str, suite: str, key: str) -> str | None:
    """Id of the MLflow run that mirrors a run; None if there is none, or no store yet.

    Raises:
        Exception: whatever MLflow raises where its server can't be reached.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    client = _client(uri)
    experiment = client.get_experiment_by_name(f"tsd-{suite}")
    if experiment is None:
        return None
    run = _tagged(client, experiment.experiment_id, KEY, key)
    return str(run.info.run_id) if run else None


def sync_run(folder: Path, uri: str) -> str:
    """Bring MLflow in step with a run's folder; returns the MLflow run's id. Doing it again changes nothing.

    Lines of ``log.jsonl`` after the newest checkpoint are left for later: a resumed training writes them again.

    Raises:
        Exception: whatever MLflow raises; see :func:`mirror`.
    """
    from mlflow.entities import Param, RunTag

    described = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
    environment = _json(folder / "environment.json")
    status = _json(folder / "status.json")
    client = _client(uri)
    root = folder.resolve().parents[5]
    experiment_id = _experiment_id(client, f"tsd-{described['suite']}", root, uri)
    key = f"{described['suite']}/{described['experiment']}/{described['digest']}/seed{described['seed']}"
    run = _tagged(client, experiment_id, KEY, key)
    if run is None:
        name = f"{described['experiment']} seed{described['seed']}"
        run = client.create_run(experiment_id, run_name=name, tags={KEY: key})
    run_id = run.info.run_id
    known = run.data.params
    params = {name: str(value)[:6000] for name, value in _flatten(described["params"])}
    new = [Param(name, value) for name, value in params.items() if name not in known]
    tags = _tags(described, environment, status)
    rows = dict(reversed([row.split("/", 1) for row in described.get("tables", [])]))
    tags |= rows
    if rows and "mlflow.parentRunId" not in run.data.tags:
        parents = (_parent(client, experiment_id, row.split("/")[0]) for row in described["tables"])
        if (parent := next(filter(None, parents), None)) is not None:
            tags["mlflow.parentRunId"] = parent
    changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
    client.log_batch(run_id, params=new[:100], tags=changed)
    for start in range(100, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])
    _log_curves(client, run_id, folder, status)
    _log_results(client, run_id, folder)
    _upload(client, run_id, folder, run.data.tags.get("tsd.artifacts"))
    state = status.get("status", "RUNNING")
    if run.info.status != state:
        if state == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, status=state)
    return run_id


def _log_curves(client: Any, run_id: str, folder: Path, status: dict[str, Any]) -> None:
    from mlflow.entities import Metric

    last = _last_step(folder, status)
    done = {}
    metrics = []
    for line in read_whole_lines(folder / "log.jsonl"):
        if line["step"] > last:
            continue
        for name, value in line.items():
            if name in ("time", "step") or not isinstance(value, (int, float)):
                continue
            key = _name(name)
            if key not in done:
                done[key] = {metric.step for metric in client.get_metric_history(run_id, key)}
            if line["step"] not in done[key]:
                metrics.append(Metric(key, float(value), int(line["time"] * 1000), line["step"]))
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _last_step(folder: Path, status: dict[str, Any]) -> float:
    """Newest step that a resumed training will not do again."""
    if status.get("status") == "FINISHED":
        return float("inf")
    saved = [int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*.pth")]
    return max(saved, default=0)


def _log_results(client: Any, run_id: str, folder: Path) -> None:
    from mlflow.entities import Metric

    files = sorted(folder.glob("eval/*/metrics.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        return
    content = read_json(files[-1])
    values = dict(content["metrics"])
    values |= {f"per_class/{entry['name']}/AP": entry["AP"] for entry in content.get("per_class", [])}
    for area, by_iou in content.get("scale_iou", {}).items():
        values |= {f"scale_iou/{area}/{iou}": value for iou, value in by_iou.items()}
    present = client.get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    metrics = [
        Metric(_name(name), float(value), now, 0)
        for name, value in values.items()
        if value is not None and present.get(_name(name)) != float(value)
    ]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _upload(client: Any, run_id: str, folder: Path, before: str | None) -> None:
    """Upload what changed; a tag remembers size and time of what is there."""
    files = [folder / name for name in ("config.py", "experiment.yaml", "environment.json", "log.jsonl")]
    newest = sorted(folder.glob("eval/*/metrics.json"), key=lambda path: path.stat().st_mtime)[-1:]
    pictures = sorted(newest[0].parent.glob("pictures/*.png")) if newest else []
    seen = json.loads(before) if before else {}
    for path in [*files, *newest, *pictures]:
        if not path.is_file():
            continue
        name = str(path.relative_to(folder))
        stamp = [path.stat().st_size, int(path.stat().st_mtime)]
        if seen.get(name) != stamp:
            client.log_artifact(run_id, str(path), "pictures" if path.suffix == ".png" else None)
            seen[name] = stamp
    text = json.dumps(seen, sort_keys=True)
    if text != before:
        client.set_tag(run_id, "tsd.artifacts", text)


def _tags(described: dict[str, Any], environment: dict[str, Any], status: dict[str, Any]) -> dict[str, str]:
    tags = {
        "suite": described["suite"],
        "experiment": described["experiment"],
        "seed": described["seed"],
        "table_rows": " ".join(described.get("tables", [])),
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


def _client(uri: str) -> Any:
    # A dead server must cost seconds: MLflow's own defaults retry for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: Any, name: str, root: Path, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = (root / "mlruns" / name).resolve().as_uri() if uri.startswith("sqlite:") else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(name: str) -> str:
    """A metric name that MLflow takes: letters, digits and _ - . space / only."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
