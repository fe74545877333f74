"""Fetching data sets: files by size and digest, pictures one by one or by archive. What is stopped can be gone on with.

Nothing stands in for what is missing: what could not be had is listed in ``failures.csv`` and is an error.
"""

import csv
import io
import re
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tsd.data.manifest import digest
from tsd.data.pictures import Key, PictureStore
from tsd.data.progress import interval
from tsd.data.sources import Source
from tsd.data.transfer import MOST, Policy, TransferError, download, get
from tsd.errors import InputError, WorkError
from tsd.files import exclusive, nearest, write_text

FAILURES = "failures.csv"
SPEED = 100e6
"""Bytes per second that the estimate before fetching assumes, and names."""

SAME = 20
"""Ids that must not share one content. What photographers uploaded again and again comes in twos and threes."""

FEW, PART = 3, 0.1
"""Nor must so many that make more than this part of all pictures: in a small fetch a placeholder has few ids."""

AHEAD = 4
"""Requests waiting per thread."""

MEMBER = re.compile(r"^(?:[a-z]+\d*(?:_[0-9a-f])?/)?(?P<id>[0-9a-zA-Z_-]+)\.jpg$")
"""Name of a picture in an archive of the bucket."""


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Be the only process that fetches archives to a folder: two would take each other's files away.

    What a process that was killed left of its notes is removed.

    Raises:
        InputError: another process is fetching to it, or it can't be made.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{store}: can't be made: {error.strerror}; expected a folder to fetch to") from None
    with exclusive(store / ".lock", f"{store}: another process is fetching; wait for it, or end it"):
        for path in store.rglob(".*.tmp.json"):
            path.unlink()
        yield


def fetch_files(
    source: Source,
    folder: Path,
    *,
    only: Callable[[str], bool] | None = None,
    policy: Policy | None = None,
    beside: float = 0,
) -> list[Path]:
    """Fetch a source's files below ``folder``, each checked by size and digest; whole ones are not fetched again.

    A file that is there with the right size and a wrong digest is an error: it is never replaced behind one's back.

    Args:
        source: of the files.
        folder: a file goes to its path below it.
        only: which of them, by path; default: all.
        policy: how long to try.
        beside: bytes of disk that are needed beside the files, for what is unpacked of them.

    Raises:
        InputError: too little space, or a file with other content than the source's.
        WorkError: a file could not be had.
    """
    wanted = [file for file in source.files if only is None or only(file.path)]
    missing = [file for file in wanted if not (folder / file.path).is_file()]
    _announce(f"{len(missing)} of {len(wanted)} files", sum(file.bytes for file in missing), folder, beside)
    for file in wanted:
        path = folder / file.path
        if file not in missing:
            _check(path, file.bytes, file.sha256, source)
            continue
        with tqdm(total=file.bytes, desc=file.path, unit="B", unit_scale=True, mininterval=interval()) as bar:
            url = source.files_url + file.path
            try:
                download(url, path, size=file.bytes, sha256=file.sha256, policy=policy, progress=bar.update)
            except OSError as error:
                raise WorkError(f"{path}: not written: {error}; what has come stays, and is gone on with") from None
    return [folder / file.path for file in wanted]


def _check(path: Path, size: int, sha256: str, source: Source) -> None:
    if path.stat().st_size != size or digest(path) != sha256:
        raise InputError(f"{path}: its content is not that of source {source.name} in params/sources.yaml; remove it")


def _announce(what: str, size: float, folder: Path, beside: float = 0) -> None:
    """Say what is to come and how much of the disk it takes.

    Raises:
        InputError: it does not fit.
    """
    free = free_space(folder)
    minutes = size / SPEED / 60
    unpacked = f", and {beside / 1e9:.2f} GB to unpack" if beside else ""
    print(
        f"{folder}: {what} to fetch, about {size / 1e9:.2f} GB, {minutes:.0f} minutes at {SPEED / 1e6:.0f} MB/s"
        f"{unpacked}; {free / 1e9:.1f} GB are free",
        file=sys.stderr,
    )
    if size + beside > free:
        raise InputError(f"{folder}: {(size + beside) / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def free_space(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(nearest(folder)).free


def fetch_pictures(
    source: Source,
    folder: Path,
    wanted: Iterable[Key],
    *,
    threads: int = 32,
    policy: Policy | None = None,
    get_picture: Callable[..., bytes] = get,
) -> dict[str, Any]:
    """Fetch pictures one by one, those that are not there yet; returns the summary of all.

    Args:
        source: with ``pictures_url``.
        folder: pictures go to ``<folder>/<split>/<id>.jpg``.
        wanted: (split, id) of each.
        threads: requests at once.
        policy: how long to try each.
        get_picture: how a picture is had.

    Raises:
        InputError: no address of pictures, or too little space.
        WorkError: pictures are missing, or the server gave one content for many; ``failures.csv`` lists them. What came
            is kept.
    """
    if source.pictures_url is None:
        raise InputError(f"params/sources.yaml: {source.name}: pictures_url: missing: its pictures come in archives")
    keys = list(dict.fromkeys(wanted))
    for split, name in keys:
        if not re.fullmatch(r"[0-9A-Za-z_-]+", name) or not re.fullmatch(r"[0-9A-Za-z_-]+", split):
            raise InputError(f"{split}/{name}: not a picture's id: expected letters and digits")
    store = PictureStore(folder)
    missing = [key for key in keys if key not in store.records]
    _announce(f"{len(missing)} of {len(keys)} pictures", len(missing) * source.picture_bytes, folder)
    failures: dict[Key, str] = {}

    def fetch(key: Key) -> int:
        content = get_picture(f"{source.pictures_url}{key[0]}/{key[1]}.jpg", policy=policy)
        store.add(key, content)
        return len(content)

    try:
        _fetch_all(fetch, missing, threads, failures)
        failures |= _remove_placeholders(store)
    finally:
        summary = store.close()
    _report_failures(folder, failures, len(keys))
    return summary


def _fetch_all(fetch: Callable[[Key], int], keys: list[Key], threads: int, failures: dict[Key, str]) -> None:
    """Fetch in threads, a bounded number of requests ahead; a full disk ends it, a picture that fails does not."""
    queue = iter(keys)
    received = 0
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(keys), desc="pictures", unit="picture", mininterval=interval()) as bar,
    ):
        running: dict[Future[int], Key] = {}
        try:
            while True:
                for key in queue:
                    running[pool.submit(fetch, key)] = key
                    if len(running) >= threads * AHEAD:
                        break
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    key = running.pop(future)
                    try:
                        received += future.result()
                    except (TransferError, ValueError) as error:
                        failures[key] = str(error)
                    except OSError as error:
                        raise WorkError(f"{key[0]}/{key[1]}.jpg: not written: {error}; what has come stays") from None
                    bar.update()
                bar.set_postfix({"MB": f"{received / 1e6:.0f}", "failed": len(failures)}, refresh=False)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _remove_placeholders(store: PictureStore) -> dict[Key, str]:
    """Remove what a server gave in place of many pictures; returns those, and why."""
    counts = Counter(record["sha256"] for record in store.records.values())
    few = max(FEW, int(PART * len(store.records)) + 1)
    refused = {}
    for key, record in list(store.records.items()):
        count = counts[record["sha256"]]
        if count >= min(SAME, few):
            store.remove(key)
            refused[key] = f"a placeholder: {count} ids have the content of SHA-256 {record['sha256']}"
    return refused


def _report_failures(folder: Path, failures: dict[Key, str], total: int) -> None:
    path = folder / FAILURES
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "id", "reason"])
    writer.writerows([*key, reason] for key, reason in sorted(failures.items()))
    write_text(path, text.getvalue())
    first = min(failures)
    raise WorkError(
        f"{path}: {len(failures)} of {total} pictures could not be had, first {first[0]}/{first[1]}: {failures[first]}"
    )


def fetch_shards(
    source: Source,
    folder: Path,
    shards: Iterable[tuple[str, str]],
    wanted: Iterable[Key],
    *,
    keep: bool = False,
    policy: Policy | None = None,
) -> dict[str, Any]:
    """Fetch archives of pictures and keep of each the wanted ones; returns the summary of all pictures.

    Args:
        source: with ``pictures_url``; an archive is ``tar/<name>.tar.gz`` below it.
        folder: as :func:`fetch_pictures`.
        shards: (split, name) of each archive, such as ("train", "train_0").
        wanted: (split, id) of every picture that must be there at the end.
        keep: leave the archives.
        policy: how long to try.

    Raises:
        InputError: no address of pictures.
        WorkError: an archive is broken or has a member that is no picture; or pictures are missing or placeholders,
            which ``failures.csv`` lists.
    """
    if source.pictures_url is None:
        raise InputError(f"params/sources.yaml: {source.name}: pictures_url: missing: its pictures come in archives")
    keys = set(wanted)
    store = PictureStore(folder)
    failures: dict[Key, str] = {}
    try:
        for split, name in shards:
            if keys <= store.records.keys():
                break
            archive = folder / "tar" / f"{name}.tar.gz"
            if not archive.exists():
                with tqdm(desc=archive.name, unit="B", unit_scale=True, mininterval=interval()) as bar:
                    url = f"{source.pictures_url}tar/{archive.name}"
                    try:
                        download(url, archive, policy=policy, progress=bar.update)
                    except OSError as error:
                        raise WorkError(f"{archive}: not written: {error}; what has come stays") from None
            failures |= _unpack_shard(archive, split, keys, store)
            if not keep:
                archive.unlink()
        failures |= _remove_placeholders(store)
    finally:
        summary = store.close()
    for key in keys - store.records.keys() - failures.keys():
        failures[key] = "in none of the archives"
    _report_failures(folder, failures, len(keys))
    return summary


def _unpack_shard(archive: Path, split: str, wanted: set[Key], store: PictureStore) -> dict[Key, str]:
    """Keep the wanted pictures of one archive; returns those that are no pictures, and why."""
    failures = {}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tqdm(tar, desc=archive.name, unit="picture", mininterval=interval()):
                if member.isdir():
                    continue
                match = MEMBER.match(member.name)
                if not member.isfile() or match is None:
                    raise WorkError(f"{archive}: {member.name}: not a picture of the data set: refused")
                key = (split, match["id"])
                if key not in wanted or key in store.records:
                    continue
                if member.size > MOST:
                    failures[key] = f"{member.size} bytes, expected at most {MOST}"
                    continue
                file = tar.extractfile(member)
                assert file is not None
                try:
                    store.add(key, file.read())
                except ValueError as error:
                    failures[key] = str(error)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise WorkError(
            f"{archive}: broken: {error}; remove it to fetch it again; what was whole in it is kept"
        ) from None
    return failures
