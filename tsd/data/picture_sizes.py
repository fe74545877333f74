"""Pictures as they are on disk against what is said of them, by their headers alone: none is decoded."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from tsd.data.progress import interval

THREADS = 16
"""Headers read at once: on a file system behind a network most of the time is waiting."""

FORMATS = ("JPEG", "PNG")
"""Of pictures in COCO's format."""


def compare_pictures(
    folder: Path, images: Iterable[Mapping[str, Any]], sizes: Mapping[str, int] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Look at every listed picture's size in pixels, and in bytes where it is known.

    Args:
        folder: of the pictures.
        images: each with ``file_name``, ``width`` and ``height``, in pixels, as an instances file lists them.
        sizes: name → bytes; None: not known.

    Returns:
        Name → bytes of each picture that is there; and a sentence for each that is missing or differs, in their order.
    """
    found: dict[str, int] = {}
    problems = []

    def look(image: Mapping[str, Any]) -> tuple[str, int, str]:
        path = folder / image["file_name"]
        try:
            size = path.stat().st_size
        except OSError:
            return image["file_name"], -1, f"{path}: missing"
        wanted = sizes.get(image["file_name"]) if sizes is not None else size
        if wanted is None:
            return image["file_name"], size, f"{path}: not among the pictures of the manifest"
        if size != wanted:
            return image["file_name"], size, f"{path}: {size} bytes, expected {wanted}"
        return image["file_name"], size, _header_problem(path, image)

    with ThreadPoolExecutor(THREADS) as pool:
        listed = list(images)
        seen = pool.map(look, listed)
        for name, size, problem in tqdm(
            seen, total=len(listed), desc=folder.name, unit="header", mininterval=interval()
        ):
            if size >= 0:
                found[name] = size
            if problem:
                problems.append(problem)
    return found, problems


def _header_problem(path: Path, image: Mapping[str, Any]) -> str:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            size = picture.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return f"{path}: not a JPEG picture"
    wanted = (image["width"], image["height"])
    return "" if size == wanted else f"{path}: {size[0]} x {size[1]} pixels, expected {wanted[0]} x {wanted[1]}"
