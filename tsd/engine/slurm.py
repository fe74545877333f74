"""The Slurm job that a process runs in: what time it has left, and how it is started again."""

import os
import re
import subprocess
from collections.abc import Mapping

ASKING_SECONDS = 60.0
"""The longest that Slurm's answer is waited for."""

AGAIN = "TSD_REQUEUE"
"""Set to 1 where the job does nothing but the training, so that it may be started again as a whole."""


def job(environment: Mapping[str, str] = os.environ) -> str | None:
    """Number of the job that this process is part of."""
    return environment.get("SLURM_JOB_ID")


def minutes(time: str) -> float | None:
    """Slurm's days-hours:minutes:seconds as ``sinfo`` and ``squeue`` print it; None for what is no time.

    Infinite without a limit, which sinfo and squeue name differently.
    """
    if time.lower() in ("infinite", "unlimited"):
        return float("inf")
    found = re.fullmatch(r"(?:(\d{1,9})-)?(?:(\d{1,9}):)?(\d{1,9}):(\d{1,9})", time)
    if not found:
        return None
    days, hours, whole, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + whole + seconds / 60


def seconds_left(number: str) -> float | None:
    """Seconds until a job's time limit, infinite if it has none; None if Slurm does not say."""
    answer = _ask("squeue", "-h", "-j", number, "-o", "%L")
    lines = answer.stdout.split() if answer and answer.returncode == 0 else []
    left = minutes(lines[0]) if lines else None
    return None if left is None else 60 * left


def requeue(number: str) -> str | None:
    """Start the job again from its beginning; Slurm ends its processes now.

    A job that somebody cancelled, or that Slurm is ending already, is left alone.

    Returns:
        Why it was not done; None if it was.
    """
    answer = _ask("squeue", "-h", "-j", number, "-o", "%T")
    state = answer.stdout.strip() if answer and answer.returncode == 0 else "unknown"
    if state != "RUNNING":
        return f"its state is {state}"
    answer = _ask("scontrol", "requeue", number)
    if answer is None:
        return "scontrol does not answer"
    return (answer.stderr.strip() or f"exit status {answer.returncode}") if answer.returncode else None


def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASKING_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
