"""Getting a file over HTTP whole, or not at all: ranges, retries with growing waits, sizes and digests checked.

No server holds or fills who asks: each wait, each stretch of slow answers and each answer's length has a bound.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import requests

from tsd.data.manifest import digest
from tsd.data.pace import Pace, SlowError, keep_pace
from tsd.errors import WorkError
from tsd.files import read_json, write_json

CHUNK = 1 << 16
"""Bytes read at once; what is read of a piece when the connection breaks is lost."""

MOST = 32 << 20
"""Bytes of a small file at most. A picture of 1024 x 1024 pixels has 3 MB where it is not compressed at all."""

PACE = Pace(bytes=30_000, seconds=60.0)
"""500 bytes a second: far below every connection over which a data set can be fetched."""

REDIRECTS = 5
"""Addresses that a server may send on to, one after the other."""

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
        pace: bytes that must come in so many seconds of waiting; a server that is slower counts as one that is silent.
    """

    attempts: int = 6
    wait: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 60.0
    pace: Pace = PACE


class TransferError(WorkError):
    """A file that could not be had; the message names its address and the reason."""


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Session(requests.Session):
    """Follows no address that it is sent on to: it would read all of such an answer first, however long it is."""

    def resolve_redirects(self, *_: object, **__: object) -> Iterator[Any]:  # type: ignore[override]
        return iter(())


_local = threading.local()


def _session(pace: Pace) -> requests.Session:
    """One per thread: sessions are not safe to share."""
    sessions: dict[Pace, requests.Session] = _local.__dict__.setdefault("sessions", {})
    if pace not in sessions:
        sessions[pace] = keep_pace(_Session(), pace)
    return sessions[pace]


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
        TransferError: gave up; or the server has another file than expected, does not say how long it is where that is
            not known, or has one that the disk has no room for.
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


def get(url: str, *, policy: Policy | None = None, most: int = MOST) -> bytes:
    """Content of a small file.

    Args:
        url: address.
        policy: how long to try.
        most: bytes that it may have.

    Raises:
        TransferError: gave up, or the file is longer.
    """
    policy = policy or Policy()

    def attempt() -> bytes:
        with _request(url, {}, policy) as answer:
            if answer.status_code != 200:
                _refuse(url, answer)
            expected = _length(answer)
            if expected is not None and expected > most:
                raise TransferError(f"{url}: the server's file has {expected} bytes, expected at most {most}")
            content = bytearray()
            for piece in _pieces(answer):
                content += piece
                if len(content) > most:
                    raise TransferError(f"{url}: the server sends more than {most} bytes, expected at most as many")
            if expected is not None and len(content) != expected:
                raise _Again(f"closed after {len(content)} of {expected} bytes")
            return bytes(content)

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
        expected = size if size is not None else total
        if expected is None:
            raise TransferError(f"{url}: the server does not say how many bytes the file has; expected Content-Length")
        free = shutil.disk_usage(part.parent).free
        if expected - have > free:
            raise TransferError(f"{url}: {expected - have} bytes are to come, {free} are free in {part.parent}")
        write_json(note, {"validator": answer.headers.get("ETag") or answer.headers.get("Last-Modified")})
        with part.open("ab") as file:
            for piece in _pieces(answer):
                have += len(piece)
                if have > expected:
                    break
                file.write(piece)
                told(len(piece))
    if have > expected:
        _drop(part, note, told)
        raise TransferError(f"{url}: the server sends more than the {expected} bytes that the file has")
    if have != expected:
        raise _Again(f"closed after {have} of {expected} bytes")
    return have


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """The answer's bytes. What the network breaks may be tried again; what the caller breaks, such as a disk, not."""
    pieces = answer.iter_content(CHUNK)
    while True:
        try:
            piece = next(pieces, None)
        except (requests.RequestException, OSError) as error:
            raise _Again(_short(error)) from None
        if piece is None:
            return
        yield piece


def _request(url: str, headers: dict[str, str], policy: Policy) -> requests.Response:
    # Compressed in transit, lengths and ranges would be of something else than the file.
    headers = {"Accept-Encoding": "identity", **headers}
    session, place = _session(policy.pace), url
    for _ in range(REDIRECTS + 1):
        try:
            answer = session.get(place, headers=headers, stream=True, timeout=policy.timeout)
            target = session.get_redirect_target(answer)
        except (requests.RequestException, OSError) as error:
            raise _Again(_short(error)) from None
        if target is None:
            if (coding := answer.headers.get("Content-Encoding", "identity")) != "identity":
                answer.close()
                raise TransferError(f"{url}: the server answers in {coding}, expected the file's own bytes")
            return answer
        answer.close()
        place = urljoin(place, target)
    raise TransferError(f"{url}: the server sends on to another address more than {REDIRECTS} times")


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
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SlowError):
            return str(cause)
        cause = cause.__context__
    return f"{type(error).__name__}: {error}"[:300]
