"""Loading for training that can stop and go on anywhere: order and augmentation depend on (seed, position) only."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from mmengine.dist import get_dist_info
from mmengine.registry import FUNCTIONS
from torch.utils.data import Dataset, Sampler

from tsd.data.class_aware import ClassAwareSequence, ClassIndex
from tsd.data.decode import decode
from tsd.engine import stopping
from tsd.engine.adapters.openimages import StoredOpenImages
from tsd.engine.adapters.random import seed_all
from tsd.errors import InputError

Draw = tuple[int, int]
"""Position in the sequence of the whole training, and the picture that is shown there."""


@FUNCTIONS.register_module()
def ignore_stop_signals(worker: int) -> None:
    """Start of a process that loads data; it draws nothing at random that is not seeded by position.

    What asks a training to stop may reach all its processes: one that loads goes on until the training, which finishes
    its step, ends it.
    """
    stopping.obey_only_the_parent()


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A dataset indexed by (position, picture); augmentation is seeded by (seed, position)."""

    def __init__(self, dataset: dict[str, Any], seed: int) -> None:
        self.inner = DATASETS.build(dataset)
        self.seed = seed
        if len(self.inner) == 0:
            raise InputError(f"{dataset['ann_file']}: no picture with a box to train on")

    @property
    def metainfo(self) -> dict[str, Any]:
        """Classes and palette of the wrapped dataset."""
        return self.inner.metainfo

    def __len__(self) -> int:
        return len(self.inner)

    def wide(self) -> np.ndarray:
        """(len,) whether each picture is wider than high (those of a batch are alike, for little padding)."""
        if isinstance(self.inner, StoredOpenImages):
            return self.inner.wide()
        infos = (self.inner.get_data_info(picture) for picture in range(len(self)))
        return np.array([info["width"] > info["height"] for info in infos], dtype=bool)

    def class_index(self) -> ClassIndex:
        """Which pictures have a box of each class; a crowd is none."""
        if isinstance(self.inner, StoredOpenImages):
            return self.inner.class_index()
        pairs = [
            (instance["bbox_label"], picture)
            for picture in range(len(self))
            for instance in self.inner.get_data_info(picture)["instances"]
            if not instance["ignore_flag"]
        ]
        labels, pictures = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return ClassIndex.from_pairs(labels, pictures, len(self.metainfo["classes"]))

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        position, picture = draw
        seed_all(self.seed, 2, position)
        data: dict[str, Any] = self.inner[picture]
        data["data_samples"].gt_instances.set_metainfo({"position": position})
        return data


class _Sampler(Sampler[Draw], ABC):
    """What the samplers share: mmengine's seed hook tells the epoch."""

    def __init__(self, dataset: SeededDataset, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    @abstractmethod
    def draws(self) -> np.ndarray:
        """(len, 2) positions and pictures of this epoch, in order."""

    def __iter__(self) -> Iterator[Draw]:
        return ((int(position), int(picture)) for position, picture in self.draws())


@DATA_SAMPLERS.register_module()
class EpochSampler(_Sampler):
    """Every picture once in each epoch, in an order computed from (seed, epoch)."""

    def draws(self) -> np.ndarray:
        """(len, 2) positions and pictures: the position tells of the epoch and the picture, not of the order."""
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, 3, self.epoch])))
        pictures = generator.permutation(len(self))
        return np.stack((self.epoch * len(self) + pictures, pictures), axis=1)

    def num_batches(self, size: int, wide: np.ndarray) -> int:
        """Batches of ``size`` pictures in an epoch."""
        return sum(-(-int(count) // size) for count in (wide.sum(), (~wide).sum()))

    def batches(self, size: int, wide: np.ndarray) -> np.ndarray:
        """(n, size, 2) batches of one orientation each; an orientation's last one is filled up from its beginning."""
        draws = self.draws()
        parts = []
        for orientation in (True, False):
            group = draws[wide[draws[:, 1]] == orientation]
            if len(group):
                padded = group[np.resize(np.arange(len(group)), -(-len(group) // size) * size)]
                parts.append(padded.reshape(-1, size, 2))
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, 4, self.epoch])))
        together = np.concatenate(parts)
        return together[generator.permutation(len(together))]


@DATA_SAMPLERS.register_module()
class ClassAwareEpochSampler(_Sampler):
    """Each class as often as another; an epoch is as many draws as there are pictures.

    Args:
        dataset: what is drawn from.
        seed: of the run.
        with_replacement: see :class:`tsd.data.class_aware.ClassAwareSequence`.
    """

    def __init__(self, dataset: SeededDataset, seed: int, with_replacement: bool = False) -> None:
        super().__init__(dataset, seed)
        self.sequence = ClassAwareSequence(dataset.class_index(), seed, with_replacement=with_replacement)

    def draws(self) -> np.ndarray:
        """(len, 2) positions and pictures, in the order of the sequence."""
        first = self.epoch * len(self)
        _, pictures = self.sequence.draw(first, len(self))
        return np.stack((np.arange(first, first + len(self)), pictures), axis=1)

    def num_batches(self, size: int, wide: np.ndarray) -> int:
        """Batches of ``size`` pictures in an epoch, the same in every epoch."""
        return -(-len(self) // size)

    def batches(self, size: int, wide: np.ndarray) -> np.ndarray:
        """(n, size, 2) batches of one orientation each, in the order in which they fill up along the sequence.

        What is left of either orientation comes last, together, filled up from the epoch's beginning.
        """
        draws = self.draws()
        is_wide = wide[draws[:, 1]]
        parts, rest = [], []
        for orientation in (True, False):
            group = np.flatnonzero(is_wide == orientation)
            whole = len(group) // size * size
            parts.append(group[:whole].reshape(-1, size))
            rest.append(group[whole:])
        full = np.concatenate(parts)
        full = full[np.argsort(full[:, -1], kind="stable")]
        left = np.sort(np.concatenate(rest))
        missing = -len(left) % size
        left = np.concatenate((left, np.resize(np.arange(len(draws)), missing)))
        return draws[np.concatenate((full, left.reshape(-1, size)))]


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler[list[Draw]]):
    """Batches of pictures of like orientation, of one epoch, for this rank, from any batch on.

    Every rank computes the same list of global batches (of ``world × batch_size`` pictures) and takes its share, so
    all ranks do the same number of steps.
    """

    def __init__(self, sampler: EpochSampler | ClassAwareEpochSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.world = get_dist_info()
        self.wide = sampler.dataset.wide()
        self.first = 0

    def skip(self, batches: int) -> None:
        """Leave out the first ``batches`` of the next epoch that is iterated (once)."""
        self.first = batches

    def __len__(self) -> int:
        return self.sampler.num_batches(self.batch_size * self.world, self.wide)

    def __iter__(self) -> Iterator[list[Draw]]:
        first, self.first = self.first, 0
        for batch in self.sampler.batches(self.batch_size * self.world, self.wide)[first:]:
            own = batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            yield [(int(position), int(picture)) for position, picture in own]


@TRANSFORMS.register_module()
class StrictLoadImage(BaseTransform):
    """Decode a picture to BGR uint8 (H, W, 3); a missing, corrupt or wrongly sized one stops the run and is named.

    Raises:
        InputError: the file is missing, can't be decoded or has more than 8 bits a channel, or its size is not the
            annotation's.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = Path(results["img_path"])
        if not path.is_file():
            raise InputError(f"{path}: picture {results.get('img_id')} is missing")
        try:
            image = decode(path.read_bytes())
        except ValueError as problem:
            raise InputError(f"{path}: picture {results.get('img_id')} {problem}") from None
        expected = (results.get("height"), results.get("width"))
        if expected != (None, None) and image.shape[:2] != expected:
            raise InputError(
                f"{path}: picture {results.get('img_id')} is {image.shape[1]}x{image.shape[0]} pixels, "
                f"but its annotation says {expected[1]}x{expected[0]}"
            )
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class InclusiveBoxes(BaseTransform):
    """Ground truth in mmdet 1.x's coordinates: the far corner belongs to the box. To come after resizing and flips."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        boxes = results["gt_bboxes"].tensor
        boxes[:, 2:] = (boxes[:, 2:] - 1).maximum(boxes[:, :2])
        return results
