"""How large a suite's networks are and how much they compute, as ``tsd inspect`` counted it. Light: read from files.

``params/networks.csv`` has those of the suites that come with the project, ``results/<suite>/models.json`` any others.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.engine.params import Settings, Suite
from tsd.errors import InputError
from tsd.files import read_json, write_text

RECORD = Path("params/networks.csv")
"""Networks counted already, by what determines them."""

SIZE = (800, 1344)
"""(height, width) of the picture that is counted for: COCO's largest, padded."""

PROPOSALS = 1000
"""RoIs that are counted for."""

COLUMNS = ("network", "suite", "experiment", "params_m", "gmacs_picture", "gmacs_rois")


@dataclass(frozen=True)
class Network:
    """A detector in numbers.

    Attributes:
        params_m: million parameters.
        gmacs_picture: 10⁹ multiply-adds of backbone, neck and RPN for a picture of :data:`SIZE`.
        gmacs_rois: those of all box heads for :data:`PROPOSALS` RoIs.
    """

    params_m: float
    gmacs_picture: float
    gmacs_rois: float

    def gmacs(self, settings: Settings) -> float:
        """10⁹ multiply-adds for one picture in training: of the size and with the RoIs that the settings say."""
        sizes = settings["input"].get("train_sizes", [settings["input"]["size"]])
        long, short = (sum(size[side] for size in sizes) / len(sizes) for side in (0, 1))
        area = long * short / (SIZE[0] * SIZE[1])
        return self.gmacs_picture * area + self.gmacs_rois * settings["roi"]["samples"] / PROPOSALS


def models_path(suite: Suite) -> Path:
    """Where the pipeline keeps what ``tsd inspect`` counted of the suite."""
    return Path("results", suite.name, "models.json")


def networks_of(suite: Suite) -> dict[str, Network]:
    """The suite's experiments whose networks have been counted as they are today."""
    recorded = _read_record(suite.root / RECORD)
    path = models_path(suite)
    counted = read_json(path) if path.exists() else {}
    own = counted["models"] if (counted.get("size"), counted.get("proposals")) == (list(SIZE), PROPOSALS) else {}
    found = {}
    for experiment in suite.experiments:
        digest = suite.network_digest(experiment)
        if own.get(experiment, {}).get("network") == digest:
            found[experiment] = network_of(own[experiment])
        elif digest in recorded:
            found[experiment] = recorded[digest]
    return found


def network_of(facts: Mapping[str, Any]) -> Network:
    """What :func:`tsd.engine.inspect.inspect_model` counted for :data:`SIZE` and :data:`PROPOSALS`."""
    rois = facts["macs"]["roi_head"] / 1e9
    return Network(facts["params_m"], facts["gmacs"] - rois, rois)


def record(suite: Suite, facts: Mapping[str, Mapping[str, Any]], path: Path = RECORD) -> None:
    """Put the suite's networks into the record in place of those that it had there."""
    rows = [row for row in _rows(path) if row["suite"] != suite.name] if path.exists() else []
    for experiment, entry in facts.items():
        network = network_of(entry)
        numbers = (network.params_m, network.gmacs_picture, network.gmacs_rois)
        values = [suite.network_digest(experiment), suite.name, experiment, *(f"{number:.3f}" for number in numbers)]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["suite"]))
    write_text(path, text.getvalue())


def _read_record(path: Path) -> dict[str, Network]:
    found = {}
    for row in _rows(path):
        try:
            found[row["network"]] = Network(*(float(row[column]) for column in COLUMNS[3:]))
        except (TypeError, ValueError):
            raise InputError(f"{path}: {row['experiment']} of suite {row['suite']}: expected three numbers") from None
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path}, line 1: expected {','.join(COLUMNS)}")
        return list(reader)
