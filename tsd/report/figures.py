"""Pictures of the paper: proposals and detections (Figure 5), AP by IoU (Figure 6), and training curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tsd.errors import InputError
from tsd.report.style import COLOURS, LINES, figure

Array = np.ndarray
SCORE = 0.5
"""Detections below this are not drawn."""

IOU = 0.5


@dataclass(frozen=True)
class Detections:
    """Detections of one picture, in original pixels.

    Attributes:
        boxes: (N, 4) xyxy.
        scores: (N,).
        names: class names.
        proposals: (N, 4) P, of a TSD head.
        reg_proposals: (N, 4) P̂r.
        cls_points: (N, k, k, 2) centres of the cells of P̂c.
    """

    boxes: Array
    scores: Array
    names: list[str]
    proposals: Array | None = None
    reg_proposals: Array | None = None
    cls_points: Array | None = None

    def above(self, score: float) -> "Detections":
        """Only the detections above a score."""
        kept = np.flatnonzero(self.scores > score)
        extras = (self.proposals, self.reg_proposals, self.cls_points)
        picked = [None if value is None else value[kept] for value in extras]
        return Detections(self.boxes[kept], self.scores[kept], [self.names[index] for index in kept], *picked)


@dataclass(frozen=True)
class Scene:
    """A picture with its ground truth and both detectors' results."""

    image: Path
    truth: Array
    truth_names: list[str]
    baseline: Detections
    tsd: Detections


def of_picture(arrays: Mapping[str, Array], image_id: int | str, names: Mapping[int, str]) -> Detections:
    """Detections of one picture out of :func:`tsd.engine.run_files.read_proposals`.

    Raises:
        InputError: a category that the annotations do not have.
    """
    mask = arrays["image_id"] == image_id
    if odd := set(map(int, arrays["category_id"][mask])) - names.keys():
        raise InputError(f"proposals.npz: category_id: {min(odd)} is none of the annotations; predict anew")
    extras = [arrays[name][mask] if name in arrays else None for name in ("proposal", "reg_proposal", "cls_points")]
    labels = [names[int(category)] for category in arrays["category_id"][mask]]
    return Detections(arrays["bbox"][mask], arrays["score"][mask], labels, *extras)


def iou(first: Array, second: Array) -> Array:
    """IoU of boxes xyxy, (N, M)."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    opposite = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.clip(opposite - corner, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1e-9)


def matched_iou(truth: Array, truth_names: Sequence[str], found: Detections) -> float:
    """Mean over the ground truth of the best IoU with a drawn detection of its class; what is missed counts 0."""
    shown = found.above(SCORE)
    if len(truth) == 0:
        return 0.0
    if len(shown.boxes) == 0:
        return 0.0
    same = np.array([[name == other for other in shown.names] for name in truth_names])
    return float((iou(truth, shown.boxes) * same).max(axis=1).mean())


def select_scenes(scenes: Sequence[Scene], count: int) -> list[Scene]:
    """Scenes to show: where the two detectors differ most, either way, alternating; ties by file name.

    Taking turns between TSD's best and its worst keeps the picture honest.
    """
    gains = [
        matched_iou(scene.truth, scene.truth_names, scene.tsd)
        - matched_iou(scene.truth, scene.truth_names, scene.baseline)
        for scene in scenes
    ]
    ranked = sorted(range(len(scenes)), key=lambda index: (-gains[index], str(scenes[index].image)))
    turns = [ranked[place // 2] if place % 2 == 0 else ranked[-1 - place // 2] for place in range(len(ranked))]
    return [scenes[index] for index in turns[:count]]


def figure5(scenes: Sequence[Scene], out: Path, titles: tuple[str, str] = ("baseline", "TSD")) -> None:
    """The paper's Figure 5: P (yellow), P̂r (red) and the points of P̂c (pink), then both detectors' boxes.

    Ground truth is white.
    """
    rows = ["proposals P, P̂r, P̂c", f"{titles[0]}: detections", f"{titles[1]}: detections"]
    with figure(out, 2.3 * len(scenes) + 0.3, 7.2, 3, len(scenes)) as (_, axes):
        for column, scene in enumerate(scenes):
            picture = np.asarray(Image.open(scene.image).convert("RGB"))
            for row in range(3):
                axis = axes[row, column]
                axis.imshow(picture)
                axis.set(xticks=[], yticks=[], xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
                axis.grid(False)
                if column == 0:
                    axis.set_ylabel(rows[row])
            _draw_proposals(axes[0, column], scene)
            for row, found in ((1, scene.baseline), (2, scene.tsd)):
                for box in scene.truth:
                    _box(axes[row, column], box, "white", 1.2)
                _draw_boxes(axes[row, column], found.above(SCORE))


def _draw_proposals(axis: Any, scene: Scene) -> None:
    found = scene.tsd.above(SCORE)
    if found.proposals is None or found.reg_proposals is None or found.cls_points is None or len(scene.truth) == 0:
        return
    if len(found.boxes) == 0:
        return
    best = sorted({int(index) for index in iou(scene.truth, found.boxes).argmax(axis=1)})
    for index in best:
        points = found.cls_points[index].reshape(-1, 2)
        axis.scatter(points[:, 0], points[:, 1], s=3, color="#ff4fc3", zorder=3)
        _box(axis, found.proposals[index], "#ffe11a", 1.4)
        _box(axis, found.reg_proposals[index], "#ff2a2a", 1.4, "--")


def _draw_boxes(axis: Any, found: Detections) -> None:
    for box, score, name in zip(found.boxes, found.scores, found.names, strict=True):
        _box(axis, box, "#39ff6a", 1.4)
        axis.text(
            box[0] + 1,
            box[1] + 1,
            f"{name} {score:.2f}",
            fontsize=5.5,
            color="white",
            va="top",
            bbox={"facecolor": "black", "alpha": 0.55, "pad": 0.8, "edgecolor": "none"},
            clip_on=True,
        )


def _box(axis: Any, box: Array, colour: str, width: float, line: str = "-") -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, linewidth=width, linestyle=line))


def draw_detections(image: Path, found: Detections, truth: Array, out: Path) -> None:
    """One picture with detections (green) and ground truth (white)."""
    picture = np.asarray(Image.open(image).convert("RGB"))
    height = 4.0 * picture.shape[0] / picture.shape[1]
    with figure(out, 4.0, height) as (_, axes):
        axis = axes[0, 0]
        axis.imshow(picture)
        axis.set_axis_off()
        for box in truth:
            _box(axis, box, "white", 1.2)
        _draw_boxes(axis, found.above(SCORE))


def figure4(
    results: Any, curves: Mapping[str, Mapping[float, str]], paper: Mapping[str, tuple[float, float]], out: Path
) -> None:
    """AP by margin, mean over seeds and, with several, their spread (Figure 4).

    Args:
        results: from :func:`tsd.report.tables.collect_results`.
        curves: label → margin → experiment; margins without a run are left out.
        paper: label → (margin, AP in percent) that the paper prints.
        out: PNG.
    """
    with figure(out, 5.2, 3.6) as (_, axes):
        axis = axes[0, 0]
        ap = results[results["metric"] == "AP"]
        for place, (label, experiments) in enumerate(curves.items()):
            found = {margin: ap.loc[ap["experiment"] == name, "value"] * 100 for margin, name in experiments.items()}
            found = {margin: values for margin, values in found.items() if len(values)}
            means = [values.mean() for values in found.values()]
            spread = [values.std() if len(values) > 1 else 0.0 for values in found.values()]
            look = {"linestyle": LINES[place], "color": COLOURS[place]}
            axis.errorbar(list(found), means, yerr=spread, label=label, marker="o", ms=4, capsize=2, **look)
            if label in paper:
                margin, value = paper[label]
                axis.plot([margin], [value], "s", color=COLOURS[place], mfc="none", ms=8, label=f"{label}, the paper")
        axis.set(xlabel="margin", ylabel="AP (%)")
        axis.legend()


def figure6(results: Any, titles: Mapping[str, str], out: Path) -> None:
    """AP by IoU threshold, mean over seeds (Figure 6).

    Args:
        results: from :func:`tsd.report.tables.collect_results`.
        titles: experiment → label, in drawing order.
        out: PNG.
    """
    thresholds = ("0.50", "0.60", "0.70", "0.80", "0.90")
    with figure(out, 5.2, 3.6) as (_, axes):
        axis = axes[0, 0]
        for place, (experiment, title) in enumerate(titles.items()):
            own = results[results["experiment"] == experiment]
            means = [own.loc[own["metric"] == f"all_{iou}", "value"].astype(float).mean() * 100 for iou in thresholds]
            x = [float(iou) for iou in thresholds]
            axis.plot(x, means, label=title, linestyle=LINES[place % 6], color=COLOURS[place % 6], marker="o", ms=3)
        axis.set(xlabel="IoU threshold", ylabel="AP (%)", ylim=(0, None), xticks=[0.5, 0.6, 0.7, 0.8, 0.9])
        axis.legend()


def training_curves(logs: Mapping[str, list[dict[str, Any]]], out: Path) -> None:
    """Total loss by step (median of 20 lines) and AP50 by epoch of each run.

    Args:
        logs: run's title → lines of its ``log.jsonl``.
        out: PNG.
    """
    with figure(out, 8.0, 3.4, 1, 2) as (_, axes):
        for place, (title, lines) in enumerate(logs.items()):
            look = {"linestyle": LINES[place % 6], "color": COLOURS[place % 6], "label": title}
            losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
            scores = [
                (line["epoch"], 100 * line[name])
                for line in lines
                for name in ("val/AP50", "val/AP50_val")
                if name in line
            ]
            if losses:
                steps, values = zip(*losses, strict=True)
                smooth = [float(np.median(values[max(0, end - 20) : end])) for end in range(1, len(values) + 1)]
                axes[0, 0].plot(steps, smooth, **look)
            if scores:
                epochs, values = zip(*scores, strict=True)
                axes[0, 1].plot(epochs, values, marker="o", ms=3, **look)
        axes[0, 0].set(xlabel="step", ylabel="total loss", ylim=(0, None))
        axes[0, 1].set(xlabel="epoch", ylabel="AP50 on held-out pictures (%)", ylim=(0, None))
        axes[0, 1].legend(fontsize=7)


def sampling(plans: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Pictures of each class and how often training draws one for it, by rank of the class.

    Args:
        plans: facts of :func:`tsd.data.plan.plan`.
        out: PNG.
    """
    with figure(out, 6.4, 3.8) as (_, axes):
        axis = axes[0, 0]
        for place, facts in enumerate(plans):
            counts = np.array([entry["pictures"] for entry in facts["classes"]])
            draws = np.array([entry["draws"] for entry in facts["classes"]])
            order = np.argsort(-counts, kind="stable")
            ranks = np.arange(1, len(order) + 1)
            if place == 0:
                axis.plot(ranks, counts[order], color="0.45", label="pictures with the class")
            title = f"draws, {facts['sampling'].replace('_', ' ')}, {facts['epochs']} epochs"
            axis.plot(ranks, draws[order], linestyle=LINES[place % 6], color=COLOURS[place % 6], label=title)
        axis.set(xlabel="class, the most frequent first", ylabel="pictures", yscale="symlog", xlim=(1, len(ranks)))
        axis.legend()
