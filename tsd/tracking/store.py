"""Where MLflow keeps the runs: the store, its experiments, and the views that a person opens."""

import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

from tsd.errors import InputError
from tsd.files import atomic_path, exclusive

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

_SECRET = re.compile("pass|pwd|token|secret|key|odbc_connect", re.IGNORECASE)
"""Names of options that hold what nobody is to see."""


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the sqlite file beside the repository; a relative sqlite path is made absolute.

    Raises:
        InputError: a file store, which MLflow no longer takes, or something that is no store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    path = _file_of(uri)
    if path is not None and (root / path).is_dir():
        raise InputError(
            f"MLFLOW_TRACKING_URI={without_password(uri)}: is a folder; name a file in it: "
            f"{without_password(uri)}/mlflow.db"
        )
    if path is not None and not path.is_absolute():
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


def seconds_to_answer(uri: str) -> float:
    """How long the first answer of a store may take. A file's or a data base's schema may have to be made for it."""
    return 30.0 if uri.startswith("http") else 60.0


def _file_of(uri: str) -> Path | None:
    """A sqlite store's file; None for any other store, and where none is named."""
    name = uri.removeprefix("sqlite:///").partition("?")[0] if uri.startswith("sqlite:///") else ""
    return Path(name) if name else None


def without_password(uri: str) -> str:
    """The URI as messages show it: without its user, password and options, however badly it is written.

    Where an @ after the first ? leaves it open what is what, its scheme alone.
    """
    scheme, separator, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    place, _, options = rest.partition("?")
    shown = place if place.startswith("/") else place.rpartition("@")[2]
    if "@" in options or (not separator and _SECRET.search(shown)):
        shown = "…"
    return f"{scheme}{separator}{shown}"


def scrubbed(text: str, uri: str) -> str:
    """A text of a library about a store, without what :func:`without_password` leaves out of its URI."""
    text = text.replace(uri, without_password(uri))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(uri: str) -> set[str]:
    """The passwords in a URI, as they are written there and as libraries decode them."""
    rest = uri.partition("://")[2]
    place, _, options = rest.partition("?")
    written = [text.rpartition("@")[0].partition(":")[2] for text in (place, rest) if not text.startswith("/")]
    for option in options.split("&"):
        name, _, value = option.partition("=")
        written += [value] if _SECRET.search(name) else []
    return {form for text in written for form in (text, unquote(text), unquote_plus(text)) if form}


def why_not_from_here(uri: str, environ: Mapping[str, str]) -> str | None:
    """Why this process is not to write to the store, as a part of a sentence; None where it may.

    Jobs of a cluster run on many nodes: a sqlite file on their shared file system does not take many writers, and a
    loopback address is another machine on each node.

    Args:
        uri: of the store.
        environ: the process's environment, in which Slurm names its job.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    if uri.startswith("sqlite:"):
        return "a sqlite file does not take the jobs of a cluster as writers"
    try:
        host = urlsplit(uri).hostname or ""
    except ValueError:  # what is no address is told by who tries it
        return None
    return f"{host or 'a socket'} is this node's own" if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means the machine itself; an empty one does."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "" or host == "localhost" or host.startswith("localhost.") or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def nothing() -> None:
    """Tell nobody of a step."""


def init(
    root: str | Path,
    uri: str,
    experiments: list[str],
    tables: Mapping[str, str] | None = None,
    moved: Callable[[], None] = nothing,
) -> list[str]:
    """Create the store, its experiments, and in them a parent run per table.

    One process must do it before several write to a fresh sqlite file, whose schema it makes.

    Args:
        root: the repository.
        uri: of the store.
        experiments: names of MLflow experiments.
        tables: names and titles of the tables.
        moved: is called after each step.

    Returns:
        For each experiment the page of MLflow's UI that lists its runs with their AP columns, to be put behind the
        server's address.
    """
    client = connect(uri)
    pages = []
    for name in experiments:
        number = experiment_id(client, name, Path(root), uri)
        moved()
        for table, title in (tables or {}).items():
            the_run(client, number, PARENT, table, name=f"{table}: {title}")
            moved()
        client.set_experiment_tag(number, f"mlflow.sharedViewState.{VIEW}", json.dumps({"selectedColumns": _COLUMNS}))
        pages.append(f"/#/experiments/{number}/runs?viewStateShareKey={VIEW}")
    return pages


def may_be_there(uri: str) -> bool:
    """Whether there can be runs in a store: not in a file that has not been made."""
    path = _file_of(uri)
    return path is None or path.exists()


def find_run(uri: str, suite: str, key: str) -> str | None:
    """Id of the MLflow run that mirrors a run; None if there is none.

    Raises:
        Exception: whatever MLflow raises where its server can't be reached.
    """
    client = connect(uri)
    experiment = client.get_experiment_by_name(f"tsd-{suite}")
    if experiment is None:
        return None
    found = _tagged(client, experiment.experiment_id, KEY, key)
    return str(found[0].info.run_id) if found else None


def parent_of(client: Any, experiment: str, table: str) -> str | None:
    """Id of a table's parent run; None if there is none."""
    found = _tagged(client, experiment, PARENT, table)
    return str(found[0].info.run_id) if found else None


def the_run(client: Any, experiment: str, tag: str, value: str, *, name: str, started: int | None = None) -> Any:
    """The MLflow run with that value of a tag, made if there is none.

    Two processes can make one at the same time. Each then looks again: the one that does so later sees both, and all
    agree on which one stays. The other is deleted, as a person deletes a run; MLflow lists it no more.

    Args:
        client: of the store.
        experiment: id of the experiment.
        tag: name of the tag.
        value: its value.
        name: of a new run.
        started: when it began, in milliseconds since 1970; None for now.
    """
    found = _tagged(client, experiment, tag, value)
    if not found:
        client.create_run(experiment, start_time=started, run_name=name, tags={tag: value})
        found = _tagged(client, experiment, tag, value)
    for other in found[1:]:
        client.delete_run(other.info.run_id)
    return found[0]


def _tagged(client: Any, experiment: str, tag: str, value: str) -> list[Any]:
    """Runs with that value of a tag; the one that stays comes first."""
    found = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", max_results=100)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def connect(uri: str) -> Any:
    """MLflow's client for a store. A dead server must cost seconds: MLflow's own defaults retry for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")  # it can name hours
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    if (path := _file_of(uri)) is not None:
        _make_file(path)
    elif not uri.startswith(("http", "sqlite")):
        _reach(uri)
    return MlflowClient(tracking_uri=uri)


def _reach(uri: str) -> None:
    """Connect to a data base once: where it can't be, MLflow itself would try for minutes and keep the reason."""
    from sqlalchemy import NullPool, create_engine

    create_engine(uri, poolclass=NullPool).connect().close()


def _make_file(path: Path) -> None:
    """Make a fresh sqlite file whole or not at all.

    MLflow writes its schema for seconds: two processes that do so at once, or one that is killed, leave a file that
    nothing mends.
    """
    from mlflow.tracking import MlflowClient

    if path.exists() or not path.parent.is_dir():
        return
    with exclusive(path.with_name(f".{path.name}.lock"), None):
        if path.exists():
            return
        for rest in path.parent.glob(f".{path.stem}.*.tmp{path.suffix}*"):  # of one that was killed
            rest.unlink(missing_ok=True)
        with atomic_path(path) as temporary:
            MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments(max_results=1)


def _check_place(location: str, root: Path, uri: str) -> None:
    path = _file_of(uri)
    if path is None or not path.resolve().is_relative_to(root) or not location.startswith("file:"):
        return
    files = Path(unquote(urlsplit(location).path))
    if not files.is_relative_to(root):
        raise InputError(
            f"{path}: its runs' files are in {files}: it was copied or moved here with its folder, and what is written "
            "to it would go there; move it away, and `tsd mlflow sync` makes one of this folder's runs"
        )


def experiment_id(client: Any, name: str, root: Path, uri: str) -> str:
    """Id of the experiment, which is made if there is none, and restored if it was deleted.

    Raises:
        InputError: the store is a file in this folder, and keeps its runs' files in another: it was copied or moved.
    """
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
    _check_place(found.artifact_location, root.resolve(), uri)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
