"""The class-aware sequence: exact bins and rounds, any position on its own, and the right distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.data.class_aware import ClassAwareSequence, ClassIndex
from tsd.data.plan import Options, count_draws


def skewed(classes=20, seed=0):
    """Classes of 1 to some hundred pictures, two of them without any."""
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.geomspace(1, 300, classes).astype(int), return_index=False)
    labels, pictures = [], []
    for label, size in enumerate(sizes):
        if label in (3, 7):
            continue
        own = rng.choice(400, size, replace=False)
        labels += [label] * (2 * size)  # two boxes each
        pictures += [*own, *own]
    order = rng.permutation(len(labels))
    return ClassIndex.from_pairs(np.array(labels)[order], np.array(pictures)[order], len(sizes))


def test_the_index_has_each_picture_once_per_class():
    index = ClassIndex.from_pairs(np.array([2, 0, 2, 2, 0]), np.array([5, 1, 5, 3, 9]), 4)
    assert index.starts.tolist() == [0, 2, 2, 4, 4]
    assert index.pictures.tolist() == [1, 9, 3, 5]
    assert index.counts.tolist() == [2, 0, 2, 0]


def test_every_bin_has_every_class_once_and_every_round_every_picture():
    index = skewed()
    sequence = ClassAwareSequence(index, seed=4)
    size = len(sequence.classes)
    classes, pictures = sequence.draw(0, 700 * size)
    assert (np.sort(classes.reshape(-1, size), axis=1) == sequence.classes).all()
    assert len({tuple(row) for row in classes.reshape(-1, size)[:50]}) == 50  # another order each time
    for label in sequence.classes:
        own = index.pictures[index.starts[label] : index.starts[label + 1]]
        drawn = pictures[classes == label]
        for start in range(0, len(drawn) - len(own) + 1, len(own)):
            assert sorted(drawn[start : start + len(own)]) == own.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.integers(0, 300), st.booleans())
def test_any_stretch_is_that_of_the_whole_sequence(first, count, with_replacement):
    sequence = ClassAwareSequence(skewed(8), seed=1, with_replacement=with_replacement)
    whole = ClassAwareSequence(skewed(8), seed=1, with_replacement=with_replacement).draw(
        max(first - 100, 0), count + 200
    )
    part = sequence.draw(first, count)
    for ours, theirs in zip(part, whole, strict=True):
        assert ours.tolist() == theirs[min(first, 100) : min(first, 100) + count].tolist()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_resuming_with_another_number_of_processes_goes_on_in_the_same_sequence(world):
    """Sixteen pictures a step, shared out in turn: together the processes see the same, whatever their number."""
    index = skewed()
    expected = ClassAwareSequence(index, seed=2).draw(0, 160)[1].tolist()
    seen = []
    for step in range(10):
        mine = [ClassAwareSequence(index, seed=2).draw(step * 16, 16)[1][rank::world] for rank in range(world)]
        together = np.empty(16, dtype=int)
        for rank in range(world):
            together[rank::world] = mine[rank]
        seen += together.tolist()
    assert seen == expected


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("with_replacement", [False, True])
def test_the_distribution_is_that_of_the_definition(with_replacement):
    """P(picture) = mean over classes of 1/n_c; the first draw of many seeds is tested against it."""
    index = ClassIndex.from_pairs(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 2, 3, 4]), 3)
    draws = np.array(
        [ClassAwareSequence(index, seed, with_replacement=with_replacement).draw(0, 1)[1][0] for seed in range(6000)]
    )
    expected = 6000 / 3 * np.array([1 / 3, 1 / 3, 1 / 3 + 1 / 2, 1 / 2, 1.0])
    assert chi_square(np.bincount(draws, minlength=5), expected) < 18.5  # 0.1 % of four degrees of freedom


def test_it_draws_as_mmdets_sampler_does_over_long_runs():
    """Same number of draws of each class, and of each picture within a class to within one round."""
    from mmdet.datasets.samplers import ClassAwareSampler

    index = skewed(10)
    count = int(index.pictures.max()) + 1
    by_picture = [[] for _ in range(count)]
    for label in range(len(index.counts)):
        for picture in index.pictures[index.starts[label] : index.starts[label + 1]]:
            by_picture[picture].append(label)

    class Data:
        def __init__(self):
            self.metainfo = {"classes": [str(label) for label in range(len(index.counts))]}

        def __len__(self):
            return count

        def get_cat_ids(self, picture):
            return by_picture[picture]

    theirs = np.zeros(count)
    for epoch in range(30):
        sampler = ClassAwareSampler(Data(), seed=0)
        sampler.set_epoch(epoch)
        theirs += np.bincount(list(sampler), minlength=count)
    ours = np.bincount(ClassAwareSequence(index, seed=0).draw(0, 30 * count)[1], minlength=count)
    weight = np.zeros(count)
    for label in np.flatnonzero(index.counts):
        own = index.pictures[index.starts[label] : index.starts[label + 1]]
        weight[own] += 1 / len(own)
    expected = weight / weight.sum() * 30 * count
    shown = expected > 0
    # both vary less than independent draws would, whose chi-square would be about the number of pictures
    assert chi_square(ours[shown], expected[shown]) < shown.sum()
    assert chi_square(theirs[shown], expected[shown]) < shown.sum()


def test_released_draws_repeat_pictures_within_a_round():
    index = ClassIndex.from_pairs(np.zeros(50, int), np.arange(50), 1)
    walked = ClassAwareSequence(index, seed=0).draw(0, 50)[1]
    drawn = ClassAwareSequence(index, seed=0, with_replacement=True).draw(0, 50)[1]
    assert len(set(walked.tolist())) == 50
    assert len(set(drawn.tolist())) < 50


def test_seeds_differ_and_are_checked():
    index = skewed(6)
    first, second = (ClassAwareSequence(index, seed).draw(0, 200)[1].tolist() for seed in (0, 1))
    assert first != second
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="seed: expected 0 to 4294967295"):
            ClassAwareSequence(index, seed)
    with pytest.raises(ValueError, match="no class has a picture"):
        ClassAwareSequence(ClassIndex.from_pairs(np.zeros(0, int), np.zeros(0, int), 3), 0)
    with pytest.raises(ValueError, match="labels: expected 0 to 2, got 3 to 3"):
        ClassIndex.from_pairs(np.array([3]), np.array([0]), 3)
    with pytest.raises(ValueError, match="expected positions from 0 on"):
        ClassAwareSequence(index, 0).draw(-1, 2)


def test_counted_draws_by_hand():
    index = ClassIndex.from_pairs(np.array([0, 1, 1, 1]), np.array([0, 1, 2, 3]), 2)
    times, draws = count_draws(index, 4, Options(), seed=0, epochs=1)  # two bins
    assert draws.tolist() == [2, 2]
    assert ((times > 0).sum(), (times == 0).sum(), times.max()) == (3, 1, 2)
