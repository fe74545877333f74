"""Order and augmentation follow from (seed, position): resuming anywhere continues the same sequence."""

import numpy as np
import pytest

from tsd.engine.adapters.loading import EpochSampler, ResumableBatchSampler, StrictLoadImage
from tsd.errors import InputError


class Pictures:
    """A data set of so many pictures, every third one wide."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def is_wide(self, picture):
        return picture % 3 == 0


def batches(epoch=0, skip=0, rank=0, world=1, size=4, count=30, seed=5):
    sampler = EpochSampler(Pictures(count), seed)
    sampler.set_epoch(epoch)
    batch_sampler = ResumableBatchSampler(sampler, size)
    batch_sampler.rank, batch_sampler.world = rank, world
    batch_sampler.skip(skip)
    return list(batch_sampler), len(batch_sampler)


def test_an_epoch_shows_every_picture_in_batches_of_one_orientation():
    found, length = batches()
    assert len(found) == length == 3 + 5  # 10 wide, 20 high, in fours
    assert {position for batch in found for position in batch} == set(range(30))
    assert all(len({position % 3 == 0 for position in batch}) == 1 for batch in found)


def test_positions_go_on_with_the_epoch_and_the_order_changes():
    first, second = batches(epoch=0)[0], batches(epoch=1)[0]
    assert {position for batch in second for position in batch} == set(range(30, 60))
    assert [[position - 30 for position in batch] for batch in second] != first


@pytest.mark.parametrize("skip", [0, 1, 5, 8])
def test_resuming_continues_the_same_sequence(skip):
    assert batches(epoch=2, skip=skip)[0] == batches(epoch=2)[0][skip:]


def test_the_skip_counts_once():
    sampler = EpochSampler(Pictures(12), 0)
    batch_sampler = ResumableBatchSampler(sampler, 4)
    batch_sampler.skip(2)
    assert len(list(batch_sampler)) == len(batch_sampler) - 2
    assert len(list(batch_sampler)) == len(batch_sampler)


def test_ranks_share_the_global_batches():
    whole = batches(size=4)[0]
    halves = [batches(size=2, rank=rank, world=2)[0] for rank in range(2)]
    assert [one + two for one, two in zip(*halves, strict=True)] == whole


def test_other_seeds_other_orders():
    assert batches(seed=1)[0] != batches(seed=2)[0]
    assert batches(seed=1)[0] == batches(seed=1)[0]


@pytest.fixture
def picture(tmp_path):
    import cv2

    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), np.full((20, 30, 3), 127, np.uint8))
    return {"img_path": str(path), "img_id": 7, "height": 20, "width": 30}


def test_a_picture_is_loaded(picture):
    assert StrictLoadImage()(picture)["img"].shape == (20, 30, 3)


def test_a_missing_corrupt_or_wrongly_sized_picture_is_named(picture, tmp_path):
    import cv2

    with pytest.raises(InputError, match=r"a.jpg: picture 7 is 30x20 pixels, but its annotation says 30x21"):
        StrictLoadImage()(picture | {"height": 21})
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a.jpg: picture 7 is corrupt"):
        StrictLoadImage()(picture)
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), noise)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])  # OpenCV decodes the half of it
    with pytest.raises(InputError, match=r"a.jpg: picture 7 is corrupt"):
        StrictLoadImage()(picture | {"height": 200, "width": 300})
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"a.jpg: picture 7 is missing"):
        StrictLoadImage()(picture)
