"""Our copy of the paper's figures against the text of the paper, read by other means.

TSD_PAPER names the text: each table as lines of tab-separated cells, above a line that begins with "Table N.".
"""

import os
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tsd.report.tables import load_reported

NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(?:M|ms)?")


@pytest.fixture(scope="module")
def printed():
    """Number of the table → the figures of each of its rows, as printed."""
    place = os.environ.get("TSD_PAPER")
    if not place:
        pytest.skip("TSD_PAPER is not set")
    tables, rows = {}, []
    for line in filter(str.strip, Path(place).read_text(encoding="utf-8").splitlines()):
        caption = re.match(r"Table (\d)\. ", line)
        if caption:
            tables[int(caption[1])] = rows
        if "\t" not in line:
            rows = []
            continue
        cells = [re.sub(r"<[^>]*>", "", cell).strip() for cell in line.split("\t")]
        figures = tuple(float(found[1]) for cell in cells if (found := NUMBER.fullmatch(cell)))
        if figures:
            rows.append(figures)
    return tables


@pytest.mark.parametrize("number", range(1, 10))
def test_every_figure_of_the_papers_tables_is_in_our_copy(printed, number):
    frame = load_reported(ROOT / "params")
    own = frame[frame["table"] == f"table{number}"]
    rows = [tuple(group["value"]) for _, group in own.groupby("row", sort=False)]
    if number == 9:  # a row of ours has three of the paper's: small, medium, large
        rows = [row[start : start + 5] for row in rows for start in range(0, len(row), 5)]
    assert sorted(rows) == sorted(printed[number])
    assert len(rows) == {1: 6, 2: 2, 3: 4, 4: 6, 5: 10, 6: 8, 7: 4, 8: 25, 9: 6}[number]
