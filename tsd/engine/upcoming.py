"""What a suite will fetch before anything is trained, which a dry run begins with. Light; no server is asked."""

from collections.abc import Sequence
from pathlib import Path

from tsd.data.sources import Source, SourceFile
from tsd.engine.identity import manifest_path, suite_source
from tsd.engine.params import Suite
from tsd.errors import InputError


def archives_of(suite: Suite) -> tuple[Source, list[SourceFile], Path] | None:
    """A suite's source, those of its files that the suite needs, and where they are put; None: it has no source."""
    if suite.is_openimages and "generate" not in suite.data:
        source = suite_source(suite)
        return source, list(source.files), suite.challenge.annotations
    if "source" not in suite.data:
        return None
    source = suite_source(suite)
    if suite.fetched is not None:
        from tsd.data.formats.coco_place import wanted_files

        return source, wanted_files(source), suite.fetched.store
    from tsd.data.formats.voc_archives import read_archives

    archives = read_archives(suite.data)
    return source, [file for file in source.files if file.path in archives.archives], archives.store


def format_upcoming(suite: Suite) -> list[str]:
    """Lines that say how many files are to be fetched, their size, from where and to where, and the space that is free.

    Nothing for a suite without a source, a sentence for one whose data is there or is there in part.
    """
    known = archives_of(suite)
    if known is None:
        return []
    source, files, folder = known
    try:
        if there := _there(suite):
            return [f"data: {there} is there, nothing is fetched"]
    except InputError as error:
        return [f"data: {error}"]
    from tsd.data.fetch import free_space

    missing = [file for file in files if not (folder / file.path).is_file()]
    size = sum(file.bytes for file in missing)
    lines = [f"to be fetched: {_files(missing)}, {_gb(size)}, from {source.files_url} to {folder}"]
    if source.pictures_url is not None:
        more: float = source.picture_bytes * sum(source.pictures.values())
        count = sum(source.pictures.values())
        lines.append(f"  and then pictures, at most {count:,}, {_gb(more)}, from {source.pictures_url}")
    else:
        more = sum(file.bytes for file in files)
        lines.append(f"  and about {_gb(more)} to unpack")
    free = free_space(folder)
    short = f": too little, {_gb(size + more)} are needed" if free < size + more else ""
    return [*lines, f"  {_gb(free)} are free there{short}"]


def _there(suite: Suite) -> str:
    """The folder or file that is there already; empty if it is to be fetched.

    Raises:
        InputError: a part of it is there.
    """
    if suite.is_openimages:
        summary = Path(suite.data["folder"], "pictures.json")
        return str(summary) if summary.exists() else ""
    if suite.fetched is not None:
        from tsd.data.formats.coco_place import is_there

        return str(suite.fetched.out) if is_there(suite.fetched) else ""
    from tsd.data.formats.voc_archives import is_made, read_archives

    archives = read_archives(suite.data)
    return str(archives.out) if is_made(archives) else ""


def _files(files: Sequence[SourceFile]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files)} files"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.{1 if size < 1e11 else 0}f} GB"


def missing_data(suite: Suite) -> list[Path]:
    """Files and folders of the suite's data that are not there."""
    manifest = manifest_path(suite)
    wanted = [manifest] if manifest and suite.fetched is None else []
    if suite.is_openimages:
        challenge = suite.challenge
        wanted += challenge.files
        wanted += [challenge.store(split) for split in ("train", "val")]
    elif suite.data["format"] == "generated":
        folder = Path(suite.data["folder"])
        wanted += [folder / "train", folder / "val"]
    else:
        wanted += [path for name in ("train", "val") for path in suite.split(name)]
    return [path for path in wanted if not path.exists()]
