"""Archives unpacked: only what is wanted of them, and never out of the folder."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from tsd.data.progress import interval
from tsd.errors import InputError, WorkError


def unzip(archive: Path, folder: Path, member: Callable[[str], bool]) -> int:
    """Extract the wanted members of a zip below ``folder``, those that are not there yet; returns their number.

    A member is written under another name until it is whole, so that who is killed goes on where he was.

    Raises:
        WorkError: broken archive, a member that leads out of the folder or is a link, or the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            infos = [info for info in content.infolist() if not info.is_dir() and member(info.filename)]
            for info in infos:
                if _leads_out(info.filename):
                    raise WorkError(f"{archive}: {info.filename}: leads out of the folder: refused")
                if (info.external_attr >> 16) & 0o170000 == 0o120000:
                    raise WorkError(f"{archive}: {info.filename}: a link; expected a file: refused")
            if len({info.filename for info in infos}) < len(infos):
                raise WorkError(f"{archive}: broken: a file is in it twice; remove it to fetch it again")
            for info in tqdm(infos, desc=archive.name, unit="file", mininterval=interval()):
                path = folder / info.filename
                if path.is_file() and path.stat().st_size == info.file_size:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.part")
                with content.open(info) as source, temporary.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                temporary.replace(path)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise WorkError(f"{archive}: broken: {error}; remove it to fetch it again") from None
    except OSError as error:
        raise WorkError(f"{archive}: can't be unpacked to {folder}: {error}; what is unpacked stays") from None
    return len(infos)


def untar(archive: Path, folder: Path, member: Callable[[str], bool]) -> int:
    """Extract the wanted files of a tar, compressed or not, below ``folder``; returns their number.

    Every name is looked at before the first file is written.

    Raises:
        WorkError: broken archive, a member that leads out of the folder, a wanted one that is a link or a device, or
            the disk is full.
    """
    try:
        with tarfile.open(archive) as content:
            infos = [info for info in content.getmembers() if not info.isdir()]
            if out := next((info.name for info in infos if _leads_out(info.name)), None):
                raise WorkError(f"{archive}: {out}: leads out of the folder: refused")
            infos = [info for info in infos if member(info.name)]
            for info in infos:
                if not info.isfile():
                    raise WorkError(f"{archive}: {info.name}: a link or a device; expected a file: refused")
            for info in tqdm(infos, desc=archive.name, unit="file", mininterval=interval()):
                path = folder / info.name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = content.extractfile(info)
                assert source is not None
                with source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (tarfile.TarError, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(":")  # a line for each way of opening it follows
        raise WorkError(f"{archive}: broken: {reason}; remove it to fetch it again") from None
    except OSError as error:
        raise WorkError(f"{archive}: can't be unpacked to {folder}: {error}") from None
    return len(infos)


def holds_nothing(folder: Path) -> bool:
    """Whether it is a folder without files and links: Snakemake makes such ones for a rule's outputs."""
    return folder.is_dir() and all(path.is_dir() and not path.is_symlink() for path in folder.rglob("*"))


def is_whole(folder: Path, parts: Iterable[Path], otherwise: str) -> bool:
    """Whether all parts of a folder are there, whoever put them there; or none. Folders without files do not count.

    Args:
        folder: that is made as a whole.
        parts: what is in it then.
        otherwise: what to do about a folder that is there in part.

    Raises:
        InputError: something is there, but not all of it.
    """
    missing = [path for path in parts if not path.exists()]
    if not missing:
        return True
    if folder.is_symlink() or (folder.exists() and not holds_nothing(folder)):
        raise InputError(f"{missing[0]}: not there, but {folder} is; complete it, or remove {otherwise}")
    return False


def _leads_out(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts
