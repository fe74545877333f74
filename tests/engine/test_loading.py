"""Order and augmentation follow from (seed, position): resuming anywhere continues the same sequence."""

import itertools

import numpy as np
import pytest

from tsd.data.class_aware import ClassAwareSequence, ClassIndex
from tsd.data.decode import decode
from tsd.engine.adapters.loading import ClassAwareEpochSampler, EpochSampler, ResumableBatchSampler, StrictLoadImage
from tsd.errors import InputError


class Pictures:
    """A data set of so many pictures, every third one wide; each fourth has the rare class 0, all have class 1."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def wide(self):
        return np.arange(self.count) % 3 == 0

    def class_index(self):
        rare = np.arange(0, self.count, 4)
        labels = np.concatenate((np.zeros(len(rare), int), np.ones(self.count, int)))
        return ClassIndex.from_pairs(labels, np.concatenate((rare, np.arange(self.count))), 2)


def batches(epoch=0, skip=0, rank=0, world=1, size=4, count=30, seed=5, kind=EpochSampler):
    sampler = kind(Pictures(count), seed)
    sampler.set_epoch(epoch)
    batch_sampler = ResumableBatchSampler(sampler, size)
    batch_sampler.rank, batch_sampler.world = rank, world
    batch_sampler.skip(skip)
    return list(batch_sampler), len(batch_sampler)


def test_an_epoch_shows_every_picture_in_batches_of_one_orientation():
    found, length = batches()
    assert len(found) == length == 3 + 5  # 10 wide, 20 high, in fours
    assert {draw for batch in found for draw in batch} == {(picture, picture) for picture in range(30)}
    assert all(len({picture % 3 == 0 for _, picture in batch}) == 1 for batch in found)


def test_positions_go_on_with_the_epoch_and_the_order_changes():
    first, second = batches(epoch=0)[0], batches(epoch=1)[0]
    assert {draw for batch in second for draw in batch} == {(30 + picture, picture) for picture in range(30)}
    assert [[picture for _, picture in batch] for batch in second] != [[picture for _, picture in b] for b in first]


@pytest.mark.parametrize("kind", [EpochSampler, ClassAwareEpochSampler])
@pytest.mark.parametrize("skip", [0, 1, 5, 7])
def test_resuming_continues_the_same_sequence(skip, kind):
    whole, length = batches(epoch=2, kind=kind)
    assert batches(epoch=2, skip=skip, kind=kind)[0] == whole[skip:]
    assert len(whole) == length


def test_the_skip_counts_once():
    sampler = EpochSampler(Pictures(12), 0)
    batch_sampler = ResumableBatchSampler(sampler, 4)
    batch_sampler.skip(2)
    assert len(list(batch_sampler)) == len(batch_sampler) - 2
    assert len(list(batch_sampler)) == len(batch_sampler)


@pytest.mark.parametrize("kind", [EpochSampler, ClassAwareEpochSampler])
def test_ranks_share_the_global_batches(kind):
    """So a training may go on with another number of processes in the same sequence."""
    whole = batches(size=4, kind=kind)[0]
    for world in (2, 4):
        parts = [batches(size=4 // world, rank=rank, world=world, kind=kind)[0] for rank in range(world)]
        assert [list(itertools.chain(*shares)) for shares in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("kind", [EpochSampler, ClassAwareEpochSampler])
def test_other_seeds_other_orders(kind):
    assert batches(seed=1, kind=kind)[0] != batches(seed=2, kind=kind)[0]
    assert batches(seed=1, kind=kind)[0] == batches(seed=1, kind=kind)[0]


def test_class_aware_batches_hold_the_draws_of_the_epoch_in_their_order():
    found, _ = batches(epoch=3, size=4, kind=ClassAwareEpochSampler)
    sequence = ClassAwareSequence(Pictures(30).class_index(), 5)
    expected = dict(zip(range(90, 120), sequence.draw(90, 30)[1].tolist(), strict=True))
    drawn = [draw for batch in found for draw in batch]
    assert len(found) == 8
    assert dict(drawn) == expected  # 30 draws in 8 batches of 4: the last one is filled up with two of them
    assert all(len({picture % 3 == 0 for _, picture in batch}) == 1 for batch in found[:-2])
    ends = [batch[-1][0] for batch in found[:-2]]
    assert ends == sorted(ends)


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


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pictures_of_other_colour_modes_have_three_channels_too(picture, mode):
    from PIL import Image

    Image.new(mode, (30, 20), 128 if mode == "L" else (128, 0, 0, 0)).save(picture["img_path"], "JPEG")
    assert StrictLoadImage()(picture)["img"].shape == (20, 30, 3)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_a_picture_of_sixteen_bits_is_refused(picture, tmp_path, shape):
    import cv2

    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full(shape, 4095, np.uint16))
    with pytest.raises(InputError, match=r"a.png: picture 7 has 16 bits a channel; expected 8: save it anew, scaled"):
        StrictLoadImage()(picture | {"img_path": str(path)})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_to_look_for_sixteen_bits_changes_no_picture_of_eight(mode):
    import io

    import cv2
    from PIL import Image

    pixels = np.random.default_rng(4).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    plain = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert np.array_equal(decode(file.getvalue()), plain)
