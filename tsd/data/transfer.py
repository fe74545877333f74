"""Getting a file over HTTP whole, or not at all: ranges, retries with growing waits, sizes and digests checked."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import requests

from tsd.data.manifest import digest
from tsd.errors import WorkError
from tsd.files import read_json, write_json

CHUNK = 1 << 16
"""Bytes read at once; what is read of a piece when the connection breaks is lost."""

RETRIED = {408, 425, 429, 500, 502, 503, 504}
"""Answers after which the same request may succeed."""

Result = TypeVar("Result")
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Policy:
    """How long to try.

    Attributes:
        attempts: requests per file before giving up.
        wait: seconds before the second request; doubled before each further one, up to ``longest_wait``. A server's
            ``Retry-After`` is honoured up to the same bound.
        timeout: seconds without a connection, or without a byte, after which a request has failed.
    """

    attempts: int = 6
    wait: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 60.0


class TransferError(WorkError):
    """A file that could not be had; the message names its address and the reason."""


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


_local = threading.local()


def _session() -> requests.Session:
    """One per thread: sessions are not safe to share."""
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    session: requests.Session = _local.session
    return session


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> int:
    """Fetch a file of any size; returns its bytes. A part that is there from before is gone on with.

    The part is ``<path>.part``; it takes the name ``path`` when it is whole and its digest is right.

    Args:
        url: address.
        path: the file to write.
        size: bytes that it must have, if known.
        sha256: digest that it must have, if known.
        policy: how long to try.
        progress: told of every piece's length (negative when a part has to be thrown away).

    Raises:
        TransferError: gave up, or the server has another file than expected.
        OSError: the disk is full or not writable; the part stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    told = progress or (lambda _: None)
    if part.exists() and size is not None and part.stat().st_size > size:
        part.unlink()
    told(part.stat().st_size if part.exists() else 0)

    def attempt() -> int:
        resumed = part.exists()
        total = _receive(url, part, note, size, policy or Policy(), told)
        if sha256 is not None and (found := digest(part)) != sha256:
            _drop(part, note, told)
            reason = f"SHA-256 is {found}, expected {sha256}"
            if resumed:  # the part may have been of another version
                raise _Again(reason)
            raise TransferError(f"{url}: {reason}: the server has another file")
        note.unlink(missing_ok=True)
        part.replace(path)
        return total

    return _retried(url, attempt, policy or Policy())


def get(url: str, *, policy: Policy | None = None) -> bytes:
    """Content of a small file.

    Raises:
        TransferError: gave up.
    """
    policy = policy or Policy()

    def attempt() -> bytes:
        with _request(url, {}, policy) as answer:
            if answer.status_code != 200:
                _refuse(url, answer)
            try:
                content = answer.content
            except (requests.RequestException, OSError) as error:
                raise _Again(_short(error)) from None
            expected = _length(answer)
            if expected is not None and len(content) != expected:
                raise _Again(f"closed after {len(content)} of {expected} bytes")
            return content

    return _retried(url, attempt, policy)


def _retried(url: str, attempt: Callable[[], Result], policy: Policy) -> Result:
    wait = policy.wait
    for number in range(1, policy.attempts + 1):
        try:
            return attempt()
        except _Again as error:
            if number == policy.attempts:
                raise TransferError(f"{url}: gave up after {number} attempts: {error}") from None
            time.sleep(min(max(wait, error.wait), policy.longest_wait))
            wait *= 2
    raise AssertionError("attempts is at least 1")


def _receive(url: str, part: Path, note: Path, size: int | None, policy: Policy, told: Progress) -> int:
    """One request for what is missing of the part; returns the file's bytes when it is whole."""
    have = part.stat().st_size if part.exists() else 0
    validator = read_json(note)["validator"] if have and note.exists() else None
    if have and validator is None:
        have = _drop(part, note, told)
    if have and have == size:
        return have
    headers = {"Range": f"bytes={have}-", "If-Range": str(validator)} if have else {}
    with _request(url, headers, policy) as answer:
        if answer.status_code == 416:
            _drop(part, note, told)
            raise _Again("the server has fewer bytes than the part")
        if answer.status_code not in (200, 206):
            _refuse(url, answer)
        if have and (
            answer.status_code == 200 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        ):
            have = _drop(part, note, told)
            if answer.status_code == 206:
                raise _Again(f"answered with range {answer.headers.get('Content-Range')}")
        length = _length(answer)
        total = None if length is None else have + length
        if size is not None and total is not None and total != size:
            _drop(part, note, told)
            raise TransferError(f"{url}: the server's file has {total} bytes, expected {size}")
        write_json(note, {"validator": answer.headers.get("ETag") or answer.headers.get("Last-Modified")})
        _write(answer, part, told)
    got = part.stat().st_size
    expected = size if size is not None else total
    if expected is not None and got != expected:
        raise _Again(f"closed after {got} of {expected} bytes")
    return got


def _write(answer: requests.Response, part: Path, told: Progress) -> None:
    """Append the answer's bytes. What the network breaks may be tried again; what the disk breaks may not."""
    pieces = answer.iter_content(CHUNK)
    with part.open("ab") as file:
        while True:
            try:
                piece = next(pieces, None)
            except (requests.RequestException, OSError) as error:
                raise _Again(_short(error)) from None
            if piece is None:
                return
            file.write(piece)
            told(len(piece))


def _request(url: str, headers: dict[str, str], policy: Policy) -> requests.Response:
    # Compressed in transit, lengths and ranges would be of something else than the file.
    headers = {"Accept-Encoding": "identity", **headers}
    try:
        return _session().get(url, headers=headers, stream=True, timeout=policy.timeout)
    except requests.RequestException as error:
        raise _Again(_short(error)) from None


def _refuse(url: str, answer: requests.Response) -> None:
    reason = f"HTTP {answer.status_code} {answer.reason or ''}".strip()
    if answer.status_code in RETRIED:
        after = answer.headers.get("Retry-After", "")
        raise _Again(reason, float(after) if after.isdigit() else 0.0)
    raise TransferError(f"{url}: {reason}")


def _length(answer: requests.Response) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _drop(part: Path, note: Path, told: Progress) -> int:
    """Throw the part away; returns the bytes that are left of it, none."""
    note.unlink(missing_ok=True)
    if part.exists():
        told(-part.stat().st_size)
        part.unlink()
    return 0


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
