"""Figure 4's curves, read back from what was drawn."""

import pandas as pd
import pytest
from matplotlib.axes import Axes

from tsd.report import figures

CURVES = {"m_c": {0.1: "a", 0.2: "b", 0.3: "c"}, "m_r": {0.1: "d"}}


def test_margins_with_runs_are_drawn_with_mean_and_spread(tmp_path, monkeypatch):
    drawn = []
    original = Axes.errorbar

    def errorbar(self, x, y, **options):
        drawn.append((options["label"], list(x), list(y), list(options["yerr"])))
        return original(self, x, y, **options)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    rows = [("a", 0.30), ("a", 0.34), ("c", 0.40), ("d", 0.35)]
    results = pd.DataFrame([{"experiment": e, "metric": "AP", "value": v} for e, v in rows])
    figures.figure4(results, CURVES, {"m_c": (0.2, 40.1)}, tmp_path / "figure4.png")
    (label, margins, means, spread), second = drawn
    assert (label, margins) == ("m_c", [0.1, 0.3])  # b has no run
    assert means == pytest.approx([32.0, 40.0])
    assert spread == pytest.approx([2.828427, 0.0])
    assert second[1] == [0.1]
    assert (tmp_path / "figure4.png").read_bytes().startswith(b"\x89PNG")
