"""One look for all pictures: legible in grey, sizes in inches, no dates in the files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tsd.files import atomic_path

LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
COLOURS = ("#0b3d6b", "#c8501e", "#3f7d3a", "#7a5195", "#8c7a1f", "#4c4c4c")

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


@contextmanager
def figure(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A styled figure with axes of shape (rows, columns), saved as PNG on leaving; the same input, the same bytes."""
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        drawing, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
        try:
            yield drawing, axes
            with atomic_path(path) as temporary:
                drawing.savefig(temporary, metadata={"Software": None})
        finally:
            plt.close(drawing)
