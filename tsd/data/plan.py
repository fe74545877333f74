"""What a run of some epochs of class-aware sampling will touch, before a picture is fetched."""

from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.class_aware import ClassAwareSequence, ClassIndex
from tsd.data.openimages import read_boxes, read_classes
from tsd.errors import InputError
from tsd.files import write_json, write_text


def plan(
    boxes: Path, classes: Path, output: Path, *, seed: int, epochs: int, with_replacement: bool = False
) -> dict[str, Any]:
    """List the pictures that training draws, and how often.

    An epoch is as many draws as there are pictures with a box. Writes ``output``, an ImageID per line in alphabetical
    order, and ``<output stem>.json``, what is returned.

    Args:
        boxes: ``challenge-2019-train-detection-bbox.csv``.
        classes: ``challenge-2019-classes-description-500.csv``.
        output: the list.
        seed: of the run.
        epochs: of the run.
        with_replacement: see :class:`tsd.data.class_aware.ClassAwareSequence`.

    Returns:
        ``pictures`` of the file, ``draws``, ``touched`` and ``never`` drawn pictures, ``most_repeated``, and for each
        class its MID, name, pictures and draws.

    Raises:
        InputError: a file that can't be used, one without boxes, or an output that is called .json.
    """
    if output.suffix == ".json":
        raise InputError(f"{output}: the list needs another suffix, such as .txt: statistics go to the .json beside it")
    mids, names = read_classes(classes)
    table = read_boxes(boxes, mids)
    if len(table) == 0:
        raise InputError(f"{boxes}: no box in it")
    # The sequence must not depend on the order of rows: pictures are numbered by their ids.
    order = np.argsort(np.array(table.pictures))
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    index = ClassIndex.from_pairs(table.columns["LabelName"], number[table.columns["ImageID"]], len(mids))
    sequence = ClassAwareSequence(index, seed, with_replacement=with_replacement)
    times = np.zeros(len(order), dtype=np.int64)
    per_class = np.zeros(len(mids), dtype=np.int64)
    for epoch in range(epochs):
        drawn_classes, drawn = sequence.draw(epoch * len(order), len(order))
        times += np.bincount(drawn, minlength=len(order))
        per_class += np.bincount(drawn_classes, minlength=len(mids))
    ids = [table.pictures[place] for place in order]
    facts = {
        "seed": seed,
        "epochs": epochs,
        "with_replacement": with_replacement,
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
    write_text(output, "".join(f"{ids[place]}\n" for place in np.flatnonzero(times)))
    write_json(output.with_suffix(".json"), facts)
    return facts
