"""The paper's Figure 1: how well a detector classifies and localises an instance from each position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from tsd.report.style import figure


@dataclass(frozen=True)
class Instance:
    """An object in a picture.

    Attributes:
        image_id: as in the annotations.
        image: file.
        box: (4,) xyxy in pixels.
        name: class.
    """

    image_id: int | str
    image: Path
    box: np.ndarray
    name: str


@dataclass(frozen=True)
class Sensitivity:
    """What a detector makes of proposals of an instance's size.

    Attributes:
        instance: the object.
        x: (G,) centres of the proposals, pixels of the original picture.
        y: (G,) the same.
        probability: (G, G) of the instance's class, by y and x.
        iou: (G, G) of the box of that class with the instance.
    """

    instance: Instance
    x: np.ndarray
    y: np.ndarray
    probability: np.ndarray
    iou: np.ndarray


def agreement(found: Sensitivity) -> float | None:
    """Pearson's correlation of the two maps over all positions; None if one of them is flat.

    At 1 the positions that classify well are those that localise well.
    """
    first, second = found.probability.ravel(), found.iou.ravel()
    if not first.std() or not second.std():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def figure1(found: Mapping[str, Sequence[Sensitivity]], out: Path) -> None:
    """A row per detector and instance: both maps over the picture, then as surfaces, each on a scale up to its best.

    Args:
        found: detector's title → its maps.
        out: PNG.
    """
    lines = [(title, one) for title, several in found.items() for one in several]
    with figure(out, 11.0, 2.75 * len(lines), len(lines), 4) as (drawing, axes):
        for row, (title, one) in enumerate(lines):
            picture = np.asarray(Image.open(one.instance.image).convert("RGB"))
            correlation = agreement(one)
            said = "" if correlation is None else f"\ncorrelation {correlation:.2f}"
            maps = (("class probability", one.probability), ("IoU of the box", one.iou))
            for column, (label, values) in enumerate(maps):
                axis = axes[row, column]
                shown = _map(axis, picture, one, values)
                axis.set_title(label)
                drawing.colorbar(shown, ax=axis, fraction=0.05)
                surface = drawing.add_subplot(axes[row, 2 + column].get_subplotspec(), projection="3d")
                axes[row, 2 + column].remove()
                _surface(surface, one, values, label)
            axes[row, 0].set_ylabel(f"{title}: {one.instance.name}{said}")


def _map(axis: Any, picture: np.ndarray, one: Sensitivity, values: np.ndarray) -> Any:
    axis.imshow(picture)
    shown = axis.pcolormesh(
        one.x, one.y, values, cmap="inferno", vmin=0, vmax=_top(values), alpha=0.65, shading="nearest", linewidth=0
    )
    x1, y1, x2, y2 = one.instance.box
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="white", linewidth=1.4))
    best = np.unravel_index(values.argmax(), values.shape)
    axis.plot(one.x[best[1]], one.y[best[0]], "+", color="#39ff6a", ms=9, mew=1.8)
    axis.set(xticks=[], yticks=[], xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
    axis.grid(False)
    return shown


def _surface(axis: Any, one: Sensitivity, values: np.ndarray, label: str) -> None:
    x, y = np.meshgrid(one.x, one.y)
    axis.plot_surface(x, y, values, cmap="inferno", vmin=0, vmax=_top(values), linewidth=0, rcount=40, ccount=40)
    axis.set(zlim=(0, _top(values)), xlabel="x, pixels", ylabel="y, pixels", title=label)
    axis.invert_yaxis()
    axis.tick_params(labelsize=6)
    axis.locator_params(nbins=4)
    axis.set_box_aspect(None, zoom=0.85)  # else the labels of the axes are cut off


def _top(values: np.ndarray) -> float:
    """End of a map's scale: where a class is likely nowhere, a scale to one would hide where it is likeliest."""
    return float(values.max()) or 1.0
