"""What a run of some epochs will show, before a picture is fetched."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.class_aware import Array, ClassAwareSequence, ClassIndex
from tsd.data.openimages import expand, read_boxes, read_classes, read_hierarchy
from tsd.errors import InputError
from tsd.files import write_json, write_text


@dataclass(frozen=True)
class Options:
    """How Open Images is trained on; the values are those of ``train_data`` in ``params/``."""

    group_of: str = "positive"
    hierarchy: str = "none"
    sampling: str = "class_aware"


@dataclass(frozen=True)
class Plan:
    """The ids of the pictures that are drawn, in alphabetical order, and facts about the draws."""

    pictures: tuple[str, ...]
    facts: dict[str, Any]


def plan(boxes: Path, classes: Path, hierarchy: Path | None, options: Options, *, seed: int, epochs: int) -> Plan:
    """Which pictures training draws, and how often.

    An epoch is as many draws as there are pictures with a box that counts.

    Args:
        boxes: ``challenge-2019-train-detection-bbox.csv``.
        classes: ``challenge-2019-classes-description-500.csv``.
        hierarchy: ``challenge-2019-label500-hierarchy.json``; needed only if boxes are given to their ancestors.
        options: how boxes and draws are treated.
        seed: of the run.
        epochs: of the run.

    Returns:
        The pictures, and ``pictures`` of the file, ``draws``, ``touched`` and ``never`` drawn pictures,
        ``most_repeated``, and for each class its MID, name, pictures and draws (of one picture uniformly drawn: for
        each class in it).

    Raises:
        InputError: a file that can't be used, or one without boxes.
    """
    mids, names = read_classes(classes)
    table = read_boxes(boxes, mids)
    label, owner = table.columns["LabelName"], table.columns["ImageID"]
    # As in the store, which leaves out boxes without extent.
    x0, x1, y0, y1 = (table.columns[name].astype(np.float32) for name in ("XMin", "XMax", "YMin", "YMax"))
    kept = (x1 > x0) & (y1 > y0)
    if options.group_of != "positive":
        kept &= ~table.columns["IsGroupOf"]
    label, owner = label[kept], owner[kept]
    if len(label) == 0:
        raise InputError(f"{boxes}: no box in it that training could use")
    if options.hierarchy == "ancestors":
        if hierarchy is None:
            raise InputError("boxes are to be given to their ancestors: the hierarchy's file is needed")
        rows, label = expand(label, read_hierarchy(classes, hierarchy).ancestors)
        owner = owner[rows]
    # The sequence must not depend on the order of rows: pictures are numbered by their ids, empty ones left out.
    present = np.zeros(len(table.pictures), dtype=bool)
    present[owner] = True
    ids = sorted(table.pictures[place] for place in np.flatnonzero(present))
    place_of = {name: place for place, name in enumerate(ids)}
    number = np.array([place_of.get(name, -1) for name in table.pictures], dtype=np.int64)
    index = ClassIndex.from_pairs(label, number[owner], len(mids))
    times, per_class = count_draws(index, len(ids), options, seed, epochs)
    facts = {
        **asdict(options),
        "seed": seed,
        "epochs": epochs,
        "pictures": len(ids),
        "draws": int(times.sum()),
        "touched": int((times > 0).sum()),
        "never": int((times == 0).sum()),
        "most_repeated": int(times.max()),
        "classes": [
            {"mid": mid, "name": name, "pictures": int(count), "draws": int(draws)}
            for mid, name, count, draws in zip(mids, names, index.counts, per_class, strict=True)
        ],
    }
    return Plan(tuple(ids[place] for place in np.flatnonzero(times)), facts)


def count_draws(index: ClassIndex, pictures: int, options: Options, seed: int, epochs: int) -> tuple[Array, Array]:
    """(M,) times that each picture, and (C,) times that each class is drawn."""
    if options.sampling == "uniform":
        return np.full(pictures, epochs, dtype=np.int64), index.counts * epochs
    sequence = ClassAwareSequence(index, seed, with_replacement=options.sampling == "class_aware_replacement")
    times = np.zeros(pictures, dtype=np.int64)
    per_class = np.zeros(len(index.counts), dtype=np.int64)
    for epoch in range(epochs):
        classes, drawn = sequence.draw(epoch * pictures, pictures)
        times += np.bincount(drawn, minlength=pictures)
        per_class += np.bincount(classes, minlength=len(per_class))
    return times, per_class


def write_plans(plans: Sequence[Plan], output: Path) -> None:
    """Write an ImageID per line, in alphabetical order, of all plans together, and their facts as JSON beside it.

    Raises:
        InputError: ``output`` is called .json, which the facts are.
    """
    if output.suffix == ".json":
        raise InputError(f"{output}: the list needs another suffix, such as .txt: statistics go to the .json beside it")
    pictures = sorted({name for made in plans for name in made.pictures})
    write_text(output, "".join(f"{name}\n" for name in pictures))
    write_json(output.with_suffix(".json"), [made.facts for made in plans])
