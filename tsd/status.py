"""``status.json`` in a run's folder: whether it is being trained, ended or failed. What reads it comes here."""

from datetime import datetime
from pathlib import Path
from typing import Any

from tsd.errors import InputError
from tsd.files import read_json

FILE = "status.json"

STATES = ("RUNNING", "FINISHED", "KILLED", "FAILED")


def read_status(folder: Path) -> dict[str, Any] | None:
    """A run's ``status``, ``error`` (a text or None), and the times ``started`` and ``ended`` (None while it runs).

    Times are ISO 8601 with their zone. None: the training has not begun.

    Raises:
        InputError: it is damaged; names file and key.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    found = content if isinstance(content, dict) else {}
    wrong = None
    if found.get("status") not in STATES:
        wrong = f"status: expected one of {', '.join(STATES)}, got {found.get('status')!r}"
    elif not _is_time(found.get("started")):
        wrong = f"started: expected a time, got {found.get('started')!r}"
    elif found.get("ended") is not None and not _is_time(found["ended"]):
        wrong = f"ended: expected a time or null, got {found['ended']!r}"
    elif not isinstance(found.get("error"), str | None):
        wrong = f"error: expected a text or null, got {found['error']!r}"
    if wrong:
        raise InputError(f"{path}: {wrong}; remove the file, the training goes on without it")
    return {key: found.get(key) for key in ("status", "error", "started", "ended")}


def _is_time(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False
