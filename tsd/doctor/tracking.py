"""Where MLflow shows the runs. A training goes on without it, so little here is an error."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from tsd.doctor.checks import Check, Context
from tsd.doctor.places import mount_of, nearest
from tsd.errors import InputError

PATIENCE = 5.0
"""Seconds for a server to answer."""

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

_SYNC = "Trainings go on without it; `tsd mlflow sync` catches up."


def mlflow(context: Context) -> Check:
    """Whether the store that ``MLFLOW_TRACKING_URI`` names takes runs from here."""
    from tsd.engine.tracking import tracking_uri

    try:
        uri = tracking_uri(context.suite.root.resolve())
    except InputError as error:
        remedy = "Name a store: `export MLFLOW_TRACKING_URI=http://HOST:5000`, or `unset MLFLOW_TRACKING_URI`."
        return Check("MLflow", "error", str(error), remedy)
    if uri.startswith("sqlite"):
        return _file(uri)
    parts = urlsplit(uri)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without a password
    if _is_loopback(parts.hostname or "") and int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1:
        finding = f"{where} is this node's own, and the job has others too"
        return Check("MLflow", "warning", finding, f"Name the server's host: `export {_NAME}`. {_SYNC}")
    problem = _ask_server(uri, where) if parts.scheme.startswith("http") else _knock(parts.hostname, parts.port, uri)
    if problem:
        remedy = f"Start the server, or name another: `mlflow server --host 0.0.0.0`, `export {_NAME}`. {_SYNC}"
        return Check("MLflow", "warning", f"{where} {problem}", remedy)
    return Check("MLflow", "ok", f"{where} answers")


_NAME = "MLFLOW_TRACKING_URI=http://HOST:5000"


def _file(uri: str) -> Check:
    path = Path(uri.split(":///", 1)[1])
    place, mount = nearest(path.parent), mount_of(path.parent)
    if not os.access(place, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        finding = f"{path} can't be written to"
        return Check("MLflow", "warning", finding, f"Name another store: `export {_NAME}`. {_SYNC}")
    if mount.is_network:
        finding = f"{path} is one file on {mount.kind}: several jobs that write to it wait for each other, or fail"
        return Check("MLflow", "warning", finding, f"Start a server, and name it: `export {_NAME}`. {_SYNC}")
    return Check("MLflow", "ok", f"{path}{'' if path.exists() else ', which will be made'}")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")


def _ask_server(uri: str, where: str) -> str | None:
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE)
    except requests.RequestException as error:
        return f"does not answer: {type(error).__name__}"
    return f"answers with status {answer.status_code}" if answer.status_code >= 500 else None


def _knock(host: str | None, port: int | None, uri: str) -> str | None:
    """Whether a data base's port is open."""
    try:
        socket.create_connection((host or "", port or PORTS[uri.split("://")[0].split("+")[0]]), PATIENCE).close()
    except OSError as error:
        return f"does not answer: {error.strerror or error}"
    return None
