"""Annotation files of the size, format and skew of the Open Images Challenge 2019, without pictures.

For measuring and rehearsing: how long the store takes, how much memory, which pictures a plan names. Boxes are random;
the number of pictures of each class falls as the challenge's do, from some hundred thousands to 14.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from tsd.data.openimages import Array, Challenge
from tsd.errors import InputError
from tsd.files import write_text

CLASSES = 500
PARENTS = 60
"""Classes that have others below them."""

RAREST, COMMONEST = 14, 800_000
ROOT = "/m/tsd000"
GROUP_SHARE = 0.055
SOURCES = np.array(["verification", "crowdsource-verification"])


@dataclass(frozen=True)
class SplitSize:
    """Pictures with boxes, further pictures with image-level labels only, and rows of the two files."""

    boxed: int
    unboxed: int
    pairs: int
    boxes: int
    labels: int

    def times(self, fraction: float) -> "SplitSize":
        """A part of it, with at least one of each."""
        scaled = (max(1, round(getattr(self, name) * fraction)) for name in self.__dataclass_fields__)
        return SplitSize(*scaled)


SIZES = {
    "train": SplitSize(1_674_979, 68_063, 5_760_000, 12_200_000, 6_000_000),
    "val": SplitSize(34_917, 6_703, 102_000, 226_000, 138_000),
}
"""Of the challenge; pictures as the paper and the bucket count them, rows after the sizes of the files."""


def generate_challenge(folder: Path, *, fraction: float = 1.0, seed: int = 0) -> dict[str, int]:
    """Write the six files below ``folder``; returns rows of each.

    Args:
        folder: gets ``annotations``; it must not be there.
        fraction: of the challenge's size; classes stay 500.
        seed: of everything random.

    Raises:
        InputError: the folder holds annotations already, or the fraction is not above 0 and up to 1.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction: expected a number above 0 and up to 1, got {fraction}")
    challenge = Challenge(folder, CLASSES)
    if challenge.annotations.exists():
        raise InputError(f"{challenge.annotations}: is there already; choose another folder")
    temporary = Challenge(folder / ".generate.tmp", CLASSES)
    shutil.rmtree(temporary.folder, ignore_errors=True)
    temporary.annotations.mkdir(parents=True)
    mids = [f"/m/tsd{number:03d}" for number in range(1, CLASSES + 1)]
    rows: dict[str, int] = {}
    try:
        write_text(temporary.classes, "".join(f"{mid},Class {number}\n" for number, mid in enumerate(mids, 1)))
        write_text(temporary.hierarchy, json.dumps(_tree(mids), indent=1) + "\n")
        for number, (split, size) in enumerate(SIZES.items()):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
            rows |= _write_split(temporary, split, size.times(fraction), mids, rng)
        temporary.annotations.rename(challenge.annotations)
    finally:
        shutil.rmtree(temporary.folder, ignore_errors=True)
    return rows


def _tree(mids: list[str]) -> dict[str, Any]:
    """The challenge's nested form, three deep; every eleventh class has two parents."""
    below: dict[str, list[str]] = {mid: [] for mid in mids}
    for number, mid in enumerate(mids[PARENTS:]):
        below[mids[number % PARENTS]].append(mid)
        if number % 11 == 0:
            below[mids[(number + 1) % PARENTS]].append(mid)
    tops, seconds = mids[: PARENTS // 2], mids[PARENTS // 2 : PARENTS]
    for number, mid in enumerate(seconds[::2]):
        below[tops[number]].append(mid)

    def node(mid: str) -> dict[str, Any]:
        children = [node(child) for child in below[mid]]
        return {"LabelName": mid, **({"Subcategory": children} if children else {})}

    return {"LabelName": ROOT, "Subcategory": [node(mid) for mid in (*tops, *seconds[1::2])]}


def class_sizes(pairs: int, pictures: int) -> Array:
    """(500,) pictures of each class, falling as 1 / rank, and at the end down to the rarest."""
    share = 1 / np.arange(1, CLASSES + 1)
    sizes = np.clip(share / share.sum() * pairs, RAREST, COMMONEST).astype(np.int64)
    sizes[-100:] = np.geomspace(max(sizes[-100], RAREST), RAREST, 100)
    return np.minimum(sizes, pictures)


def _write_split(
    challenge: Challenge, split: str, size: SplitSize, mids: list[str], rng: np.random.Generator
) -> dict[str, int]:
    number = size.boxed + size.unboxed
    ids = np.unique(rng.integers(0, 2**63, number + 1000, dtype=np.uint64))[:number]  # 16 hexadecimal digits
    names = pa.array([f"{value:016x}" for value in ids.tolist()])
    boxed = np.sort(rng.permutation(number)[: size.boxed])
    label = np.repeat(np.arange(CLASSES), class_sizes(size.pairs, size.boxed))
    label = label[rng.permutation(len(label))]
    # Every picture has a box; the rest of the classes' pictures are drawn.
    picture = np.concatenate((np.arange(size.boxed), rng.integers(0, size.boxed, max(0, len(label) - size.boxed))))
    picture = boxed[picture[: len(label)]] if len(label) < len(picture) else boxed[picture]
    if len(label) < size.boxed:
        label = np.resize(label, size.boxed)
        picture = boxed
    pairs = np.concatenate((np.arange(len(label)), rng.integers(0, len(label), max(0, size.boxes - len(label)))))
    order = pairs[np.argsort(picture[pairs], kind="stable")]
    low, extent = rng.random((2, len(order), 2), dtype=np.float32)
    extent = 0.01 + 0.99 * extent * (1 - low) * (1 - 1e-6)
    low *= 1 - extent
    rounded = np.round(np.concatenate((low, low + extent), axis=1).astype(np.float64), 6)
    columns = {
        "ImageID": names.take(pa.array(picture[order])),
        "LabelName": pa.DictionaryArray.from_arrays(pa.array(label[order].astype(np.int32)), mids).dictionary_decode(),
        "XMin": rounded[:, 0],
        "XMax": rounded[:, 2],
        "YMin": rounded[:, 1],
        "YMax": rounded[:, 3],
        "IsGroupOf": (rng.random(len(order)) < GROUP_SHARE).astype(np.int8),
    }
    _write_csv(challenge.boxes(split), columns)
    seen = np.sort(rng.integers(0, number, size.labels))
    columns = {
        "ImageID": names.take(pa.array(seen)),
        "Source": pa.array(SOURCES[rng.integers(0, 2, len(seen))]),
        "LabelName": pa.array(np.array(mids)[rng.choice(CLASSES, len(seen))]),
        "Confidence": rng.integers(0, 2, len(seen), dtype=np.int8),
    }
    _write_csv(challenge.labels(split), columns)
    return {challenge.boxes(split).name: len(order), challenge.labels(split).name: len(seen)}


def _write_csv(path: Path, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    options = arrow_csv.WriteOptions(include_header=False, quoting_style="none")
    with path.open("wb") as file:
        file.write((",".join(columns) + "\n").encode())
        arrow_csv.write_csv(table, file, options)
