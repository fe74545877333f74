"""Loading for training that can stop and go on anywhere: order and augmentation depend on (seed, position) only."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from mmengine.dist import get_dist_info
from PIL import Image
from torch.utils.data import Dataset, Sampler

from tsd.engine.adapters.random import seed_all
from tsd.errors import InputError


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A dataset indexed by position = epoch · len + picture; augmentation is seeded by (seed, position)."""

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

    def is_wide(self, picture: int) -> bool:
        """Whether a picture is wider than high (pictures of one batch share this, so that little is padding)."""
        info = self.inner.get_data_info(picture)
        return info["width"] > info["height"]

    def __getitem__(self, position: int) -> dict[str, Any]:
        seed_all(self.seed, 2, position)
        data: dict[str, Any] = self.inner[position % len(self.inner)]
        data["data_samples"].gt_instances.set_metainfo({"position": position})
        return data


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler[int]):
    """The order of an epoch, computed from (seed, epoch); mmengine's seed hook tells the epoch."""

    def __init__(self, dataset: SeededDataset, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """All pictures in this epoch's order, shape (len,)."""
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, 3, self.epoch])))
        return generator.permutation(len(self.dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return (self.epoch * len(self) + int(picture) for picture in self.order())


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler[list[int]]):
    """Batches of pictures of like orientation, of one epoch, for this rank, from any batch on.

    Every rank computes the same list of global batches (of ``world × batch_size`` pictures) and takes its share, so
    all ranks do the same number of steps. The last batch of either orientation is filled up from its beginning.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.world = get_dist_info()
        dataset = sampler.dataset
        self.wide = np.array([dataset.is_wide(picture) for picture in range(len(dataset))], dtype=bool)
        self.first = 0

    def skip(self, batches: int) -> None:
        """Leave out the first ``batches`` of the next epoch that is iterated (once)."""
        self.first = batches

    def global_batches(self) -> list[list[int]]:
        """Positions of every batch of the epoch over all ranks, in order."""
        size = self.batch_size * self.world
        order = self.sampler.order()
        offset = self.sampler.epoch * len(self.sampler)
        batches = []
        for wide in (True, False):
            group = order[self.wide[order] == wide]
            if len(group) == 0:
                continue
            padded = np.resize(group, -(-len(group) // size) * size)
            batches += [(offset + batch).tolist() for batch in padded.reshape(-1, size)]
        generator = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.sampler.seed, 4, self.sampler.epoch]))
        )
        return [batches[index] for index in generator.permutation(len(batches))]

    def __len__(self) -> int:
        size = self.batch_size * self.world
        counts = [int(self.wide.sum()), int((~self.wide).sum())]
        return sum(-(-count // size) for count in counts)

    def __iter__(self) -> Iterator[list[int]]:
        first, self.first = self.first, 0
        for batch in self.global_batches()[first:]:
            yield batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]


@TRANSFORMS.register_module()
class StrictLoadImage(BaseTransform):
    """Decode a picture to BGR uint8 (H, W, 3); a missing, corrupt or wrongly sized one stops the run and is named.

    Raises:
        InputError: the file is missing or can't be decoded, or its size is not the annotation's.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = Path(results["img_path"])
        if not path.is_file():
            raise InputError(f"{path}: picture {results.get('img_id')} is missing")
        content = path.read_bytes()
        data = np.frombuffer(content, dtype=np.uint8)
        # Annotations are in the stored pixel order: an EXIF rotation must not be applied.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(data, flags) if data.size else None
        if image is None or _is_truncated(content):
            raise InputError(f"{path}: picture {results.get('img_id')} is corrupt: it can't be decoded")
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


def _is_truncated(content: bytes) -> bool:
    """Whether a JPEG ends too early: OpenCV fills the rest with grey and says nothing.

    A JPEG ends with its end-of-image marker; where that is not in the last kilobyte, Pillow's decoder decides.
    """
    if not content.startswith(b"\xff\xd8") or b"\xff\xd9" in content[-1024:]:
        return False
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except (OSError, SyntaxError):
        return True
    return False
