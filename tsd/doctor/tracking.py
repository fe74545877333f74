"""Where MLflow shows the runs. A training goes on without it, so little here is an error."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tsd.doctor.checks import Check, Context
from tsd.doctor.places import mount_of
from tsd.errors import InputError
from tsd.files import nearest

PATIENCE = 5.0
"""Seconds for a server to answer."""

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

_SYNC = "Trainings go on without it; `tsd mlflow sync` catches up."


def mlflow(context: Context) -> Check:
    """Whether the store that ``MLFLOW_TRACKING_URI`` names takes runs from here."""
    from tsd.tracking.store import tracking_uri, why_not_from_here, without_password

    try:
        uri = tracking_uri(context.suite.root.resolve())
    except InputError as error:
        remedy = "Name a store: `export MLFLOW_TRACKING_URI=http://HOST:5000`, or `unset MLFLOW_TRACKING_URI`."
        return Check("MLflow", "error", str(error), remedy)
    where = without_password(uri)
    if reason := why_not_from_here(uri, os.environ):
        return Check("MLflow", "ok", f"{where} is not written to in a job: {reason}; the login node follows the runs")
    if uri.startswith("sqlite"):
        return _file(uri, where)
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        finding = f"MLFLOW_TRACKING_URI={where}: expected SCHEME://HOST:PORT"
        return Check("MLflow", "error", finding, f"Name a store: `export {_NAME}`.")
    is_http = parts.scheme.startswith("http")
    try:
        problem = _within(PATIENCE, lambda: _ask_server(uri) if is_http else _knock(host, port, parts.scheme))
    except TimeoutError:
        problem = f"does not answer within {PATIENCE:g} s"
    if problem and problem.startswith("answers"):
        remedy = f"See what is there: `curl -i {where.rstrip('/')}/health`, or name another: `export {_NAME}`. {_SYNC}"
        return Check("MLflow", "warning", f"{where} {problem}", remedy)
    if problem:
        remedy = f"Start the server, or name another: `mlflow server --host ADDRESS`, `export {_NAME}`. {_SYNC}"
        return Check("MLflow", "warning", f"{where} {problem}", remedy)
    return Check("MLflow", "ok", f"{where} answers")


_NAME = "MLFLOW_TRACKING_URI=http://HOST:5000"


def _file(uri: str, where: str) -> Check:
    if ":///" not in uri or not (name := uri.split(":///", 1)[1].partition("?")[0]):
        finding = f"MLFLOW_TRACKING_URI={where}: expected sqlite:///FILE.db"
        return Check("MLflow", "error", finding, "Name a file: `export MLFLOW_TRACKING_URI=sqlite:///mlflow.db`.")
    path = Path(name)
    place, mount = nearest(path.parent), mount_of(path.parent)
    if not os.access(place, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        finding = f"{path} can't be written to"
        return Check("MLflow", "warning", finding, f"Name another store: `export {_NAME}`. {_SYNC}")
    if mount.is_network:
        finding = f"{path} is one file on {mount.kind}: several processes that write to it wait for each other, or fail"
        return Check("MLflow", "warning", finding, f"Start a server, and name it: `export {_NAME}`. {_SYNC}")
    return Check("MLflow", "ok", f"{path}{'' if path.exists() else ', which will be made'}")


def _within(seconds: float, work: Callable[[], str | None]) -> str | None:
    """What the work gives, if it does by then: one byte a second keeps every other timeout from coming."""
    done: list[str | None] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError
    return done[0]


def _ask_server(uri: str) -> str | None:
    """What is wrong with a server's answer; of the answer the status alone is read."""
    import requests

    name, password = (os.environ.get(f"MLFLOW_TRACKING_{part}") for part in ("USERNAME", "PASSWORD"))
    own = (name, password or "") if name else None
    try:
        with requests.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE, stream=True, auth=own) as answer:
            status = answer.status_code
    except (requests.RequestException, ValueError) as error:
        return f"does not answer: {type(error).__name__}"
    return None if status == 200 else f"answers with status {status}, expected 200"


def _knock(host: str, port: int | None, scheme: str) -> str | None:
    """Whether a data base's port is open."""
    try:
        socket.create_connection((host, port or PORTS[scheme.split("+")[0]]), PATIENCE).close()
    except (OSError, UnicodeError) as error:
        return f"does not answer: {getattr(error, 'strerror', None) or error}"
    return None
