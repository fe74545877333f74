"""Manifests: what a data set is, in a few kilobytes; checking data against them; unpacking archives safely."""

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tsd.errors import InputError
from tsd.files import read_json, read_yaml

MANIFEST = "manifest.json"

END = 1024
"""Zero bytes at the end of every whole tar archive."""

_MD5 = re.compile(r"[0-9a-f]{32}")

Manifest = dict[str, Any]


def build_manifest(
    folder: Path, splits: dict[str, tuple[str, str]], spec: dict[str, Any] | None, others: list[str]
) -> Manifest:
    """Describe a generated data set.

    Args:
        folder: where it is.
        splits: split → (annotation file, picture folder), relative to ``folder``.
        spec: the generator's parameters.
        others: further files to pin.
    """
    described = {
        name: {"annotations": describe_file(folder, annotations), "images": describe_pictures(folder, images)}
        for name, (annotations, images) in splits.items()
    }
    files = {name: describe_file(folder, name) for name in others}
    return {"format": "coco", "spec": spec, "splits": described, "files": files}


def describe_file(folder: Path, name: str) -> dict[str, Any]:
    """Path, size and digest of one file."""
    path = folder / name
    return {"path": name, "bytes": path.stat().st_size, "sha256": digest(path)}


def describe_pictures(folder: Path, name: str) -> dict[str, Any]:
    """Count, size and one digest over name and content of all pictures of a folder."""
    total = hashlib.sha256()
    count = size = 0
    for path in sorted((folder / name).iterdir()):
        total.update(f"{path.name} {path.stat().st_size} {digest(path)}\n".encode())
        count, size = count + 1, size + path.stat().st_size
    return {"path": name, "count": count, "bytes": size, "sha256": total.hexdigest()}


def folder_manifest(train: tuple[Path, Path], val: tuple[Path, Path], memory: Path | None = None) -> Manifest:
    """Describe a COCO-format data set of the user's own by its annotation files and the pictures that they list.

    Args:
        train: (annotation file, picture folder).
        val: the same.
        memory: folder for what is remembered of pictures, so that each is read once, see
            :func:`tsd.data.contents.content_digests`. None: their contents are not read, and a picture's name and size
            stand for it.

    Raises:
        InputError: an annotation file or a listed picture is missing or can't be read, or the file is not COCO JSON.
    """
    splits = {}
    for name, (annotations, images) in (("train", train), ("val", val)):
        content = read_json(annotations)
        try:
            names = sorted(image["file_name"] for image in content["images"])
        except (KeyError, TypeError):
            raise InputError(f"{annotations}: not COCO instances: expected a list `images` with `file_name`") from None
        remembered = None if memory is None else memory / f"pictures_{name}.csv"
        splits[name] = {
            "annotations": {"path": str(annotations), **_sized(annotations), "sha256": digest(annotations)},
            "images": {"path": str(images), **_listed_pictures(images, names, annotations, remembered)},
        }
    return {"format": "coco", "spec": None, "splits": splits, "files": {}}


def _sized(path: Path) -> dict[str, int]:
    return {"bytes": path.stat().st_size}


def _listed_pictures(folder: Path, names: list[str], annotations: Path, memory: Path | None) -> dict[str, Any]:
    from tsd.data.contents import content_digests, stamp_of

    stamps = {}
    for name in names:
        try:
            stamps[name] = stamp_of(folder / name)
        except OSError:
            raise InputError(f"{annotations}: picture {name} is not in {folder}") from None
    try:
        contents = {} if memory is None else content_digests(folder, stamps, memory)
    except OSError as error:
        raise InputError(f"{error.filename}: can't be read: {error.strerror}") from None
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name} {stamps[name][0]} {contents.get(name, '')}\n".encode())
    size = sum(stamps[name][0] for name in names)
    return {"count": len(names), "bytes": size, "sha256": total.hexdigest()}


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        InputError: missing, not JSON, or not a manifest.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "splits" not in content:
        raise InputError(f"{path}: not a data manifest: no key `splits`")
    return content


def verify(path: Path, pin: str | None) -> list[str]:
    """Problems of a data set, a sentence each: its manifest against the pin, its files against the manifest.

    Args:
        path: the manifest; file names in it are relative to its folder.
        pin: MD5 that ``data.dvc`` gives for the manifest, None if it is not pinned.
    """
    manifest = read_manifest(path)
    problems = []
    if pin is not None and (found := digest(path, "md5")) != pin:
        problems.append(
            f"{path}: its MD5 is {found}, but data.dvc pins {pin}: `dvc checkout data.dvc` or `make data` restores it"
        )
    folder = path.parent
    problems += verify_annotations(path) + _differing(path, manifest.get("files", {}).values())
    for split in manifest["splits"].values():
        pictures = folder / split["images"]["path"]
        if not pictures.is_dir():
            problems.append(f"{pictures}: missing")
            continue
        found_pictures = describe_pictures(folder, split["images"]["path"])
        if found_pictures["count"] != split["images"]["count"]:
            problems.append(f"{pictures}: {found_pictures['count']} pictures, expected {split['images']['count']}")
        elif found_pictures != split["images"]:
            problems.append(
                f"{pictures}: a picture's content differs from {path}; remove the folder to unpack it again"
            )
    return problems


def verify_annotations(path: Path) -> list[str]:
    """Problems of the annotation files of a manifest, a sentence each: quick enough for the start of each training."""
    return _differing(path, [split["annotations"] for split in read_manifest(path)["splits"].values()])


def _differing(path: Path, entries: Iterable[dict[str, Any]]) -> list[str]:
    problems = []
    for entry in entries:
        file = path.parent / entry["path"]
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif (found := digest(file)) != entry["sha256"]:
            problems.append(f"{file}: content differs from {path}: its SHA-256 is {found}, expected {entry['sha256']}")
    return problems


def unpack(archive: Path, target: Path) -> None:
    """Extract a tar of pictures into ``target``; each top folder appears only when it is whole.

    Raises:
        InputError: missing or broken archive, or a member that is a link or leads out of the folder.
    """
    if not archive.is_file():
        raise InputError(f"{archive}: no such file; `make data` makes it, `dvc pull data.dvc` fetches it")
    temporary = target / f".unpack.{os.getpid()}.tmp"
    try:
        with archive.open("rb") as file:
            # tarfile takes an archive that is cut between two members for a whole one.
            file.seek(max(0, archive.stat().st_size - END))
            if file.read() != bytes(END):
                raise InputError(f"{archive}: truncated: a tar archive ends with {END} zero bytes")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                if not (member.isfile() or member.isdir()):
                    raise InputError(f"{archive}: {member.name}: neither a file nor a folder: refused")
            temporary.mkdir(parents=True)
            tar.extractall(temporary, filter="data")
        for folder in sorted(temporary.iterdir()):
            shutil.rmtree(target / folder.name, ignore_errors=True)
            folder.rename(target / folder.name)
    except tarfile.TarError as error:
        raise InputError(f"{archive}: refused or broken: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def pinned_md5(dvc_file: Path, path: str) -> str | None:
    """MD5 that a DVC file gives for one of its outs; None if that out is not listed.

    Raises:
        InputError: there is no such file, or it has no list of outs with an MD5 each: what it pinned is not known.
    """
    try:
        content = read_yaml(dvc_file)
    except InputError as error:
        raise InputError(f"{error}; it pins the data: `git checkout {dvc_file}` restores it") from None
    outs = content.get("outs") if isinstance(content, dict) else None
    if not isinstance(outs, list) or not all(isinstance(out, dict) and "path" in out for out in outs):
        raise InputError(
            f"{dvc_file}: expected a list `outs` of entries with `path` and `md5`: it pins the data; "
            f"`git checkout {dvc_file}` restores it, `outs: []` pins nothing"
        )
    found = [out.get("md5") for out in outs if out["path"] == path]
    for value in found:
        if not isinstance(value, str) or not _MD5.fullmatch(value):
            raise InputError(f"{dvc_file}: outs: md5 of {path}: expected 32 hexadecimal digits, got {value!r}")
    if len(found) > 1:
        raise InputError(f"{dvc_file}: outs: {path} is listed twice")
    return found[0] if found else None


def digest(path: Path, name: str = "sha256") -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


def dump(manifest: Manifest) -> str:
    """A manifest as text."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"
