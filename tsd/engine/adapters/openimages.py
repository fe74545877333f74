"""Open Images as mmdet sees it: pictures and boxes out of the columnar store, and the challenge's metric."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch.utils.data import Dataset

from tsd.data.class_aware import ClassIndex
from tsd.data.openimages import Challenge
from tsd.data.store import Store
from tsd.evaluation.openimages import Detections, ground_truth, score

Array = np.ndarray


@DATASETS.register_module()
class StoredOpenImages(Dataset):
    """One split of Open Images. Each process maps the store's files; nothing per box is kept in Python objects.

    Args:
        ann_file: folder of the store.
        data_prefix: ``img``: folder of the pictures, ``<ImageID>.jpg`` in it.
        pipeline: of mmdet's transforms.
        metainfo: ``classes``.
        group_of: boxes around groups in training: ``positive``, ``ignore`` or ``drop``.
        hierarchy: ``ancestors`` gives a box also the classes above its own.
        test_mode: all pictures of the store, without boxes; in training those with a box.
    """

    def __init__(
        self,
        ann_file: str,
        data_prefix: dict[str, str],
        pipeline: Sequence[dict[str, Any] | Callable],
        metainfo: dict[str, Any],
        group_of: str = "positive",
        hierarchy: str = "none",
        test_mode: bool = False,
    ) -> None:
        self.folder, self.images = Path(ann_file), Path(data_prefix["img"])
        self.metainfo = dict(metainfo)
        self.group_of, self.ancestors, self.test_mode = group_of, hierarchy == "ancestors", test_mode
        self.pipeline = Compose(pipeline)
        self._open()

    def _open(self) -> None:
        self.store = Store.open(self.folder)
        if self.test_mode:
            self.pictures = np.arange(len(self.store))
        elif self.group_of == "positive":
            self.pictures = self.store.boxed
        else:  # a picture of groups alone has nothing to learn from
            counts = np.concatenate(([0], np.cumsum(self.store.group == 0)))
            self.pictures = np.flatnonzero(np.diff(counts[self.store.starts]))

    def __getstate__(self) -> dict[str, Any]:
        """A process that is started anew maps the files itself."""
        return {key: value for key, value in self.__dict__.items() if key not in ("store", "pictures")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.pictures)

    def wide(self) -> Array:
        """(len,) whether each picture is wider than high."""
        size = self.store.size[self.pictures]
        return size[:, 0] > size[:, 1]

    def class_index(self) -> ClassIndex:
        """Which pictures have a box of each class, by the options of this dataset."""
        return self.store.class_index(self.pictures, ancestors=self.ancestors, groups=self.group_of == "positive")

    def get_data_info(self, index: int) -> dict[str, Any]:
        """mmdet's description of a picture: path, size, and in training its boxes in pixels."""
        picture = int(self.pictures[index])
        name = self.store.ids[picture].as_py()
        width, height = (int(side) for side in self.store.size[picture])
        info: dict[str, Any] = {"img_path": str(self.images / f"{name}.jpg"), "img_id": name}
        if width:
            info |= {"width": width, "height": height}
        if not self.test_mode:
            info["instances"] = self._instances(picture, (width, height))
        return info

    def _instances(self, picture: int, size: tuple[int, int]) -> list[dict[str, Any]]:
        rows = self.store.boxes_of(picture)
        boxes = self.store.box[rows] * np.array([*size, *size], dtype=np.float32)
        instances = []
        for box, label, group in zip(boxes.tolist(), self.store.label[rows], self.store.group[rows], strict=True):
            if group and self.group_of == "drop":
                continue
            ignored = int(group and self.group_of == "ignore")
            above = self.store.hierarchy.ancestors[label] if self.ancestors else ()
            instances += [{"bbox": box, "bbox_label": int(own), "ignore_flag": ignored} for own in (label, *above)]
        return instances

    def __getitem__(self, index: int) -> Any:
        return self.pipeline(self.get_data_info(index))


def to_fractions(instances: Any, shape: tuple[int, int]) -> dict[str, Array]:
    """Detections of one picture as arrays: label, score, and box (n, 4) XMin, YMin, XMax, YMax as fractions of it.

    Args:
        instances: mmdet's, with boxes in pixels of the original picture.
        shape: its (height, width).
    """
    height, width = shape
    boxes = instances["bboxes"].detach().cpu().double().numpy() / np.array([width, height, width, height])
    return {
        "label": instances["labels"].detach().cpu().numpy(),
        "score": instances["scores"].detach().cpu().double().numpy().round(6),
        "box": np.clip(boxes, 0, 1).round(6),
    }


@METRICS.register_module()
class OpenImagesFigures(BaseMetric):
    """AP at IoU 0.5 by the official protocol, detections given to the classes above theirs too.

    Args:
        folder: of the challenge's files.
        classes_count: number of classes.
    """

    default_prefix = None

    def __init__(self, folder: str, classes_count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        challenge = Challenge(Path(folder), classes_count)
        self.truth = ground_truth(
            challenge.boxes("val"), challenge.labels("val"), challenge.classes, challenge.hierarchy
        )

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            found = to_fractions(sample["pred_instances"], sample["ori_shape"])
            self.results.append({"picture": sample["img_id"], **found})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        number = self.truth.pictures
        columns = {name: np.concatenate([entry[name] for entry in results]) for name in ("label", "score", "box")}
        counts = [len(entry["label"]) for entry in results]
        owner = np.repeat([number[entry["picture"]] for entry in results], counts).astype(np.int64)
        found = Detections(owner, columns["label"], columns["box"], columns["score"])
        figures = score(self.truth, found, expand_predictions=True)["metrics"]
        MMLogger.get_current_instance().info(figures)
        return {name: float("nan") if value is None else value for name, value in figures.items()}
