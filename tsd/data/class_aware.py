"""Class-aware sampling (Shen, Lin, Huang, ECCV 2016) as a function of (seed, position): no state, no list of draws.

Draws come in bins of one draw per class, in a random order of the classes. A class's pictures are walked through in a
random order, which is drawn anew when all have been seen. So draw number b of a class is in bin b, and the class and
picture of any position of the sequence can be computed from the position alone: a training that resumes anywhere, on
any number of processes, goes on in the same sequence.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

_ORDER, _WALK, _DRAW = 0, 1, 2
"""Streams of random numbers: order of classes in a bin, walk through a class, draws with replacement."""


@dataclass(frozen=True)
class ClassIndex:
    """Pictures of each class.

    Attributes:
        starts: (C + 1,) places in ``pictures`` where each class begins.
        pictures: numbers of pictures, class by class, rising within a class.
    """

    starts: Array
    pictures: Array

    @classmethod
    def from_pairs(cls, labels: Array, pictures: Array, num_classes: int) -> "ClassIndex":
        """From the class and the picture of each box; a class is in a picture once, however many boxes it has.

        Raises:
            ValueError: lengths differ, or a label is not one of 0 … ``num_classes`` − 1.
        """
        if len(labels) != len(pictures):
            raise ValueError(f"expected one picture for each label, got {len(labels)} labels, {len(pictures)} pictures")
        if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
            raise ValueError(f"labels: expected 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
        count = int(pictures.max()) + 1 if len(pictures) else 1
        pairs = np.sort(labels.astype(np.int64) * count + pictures)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique takes several times as long
        starts = np.searchsorted(pairs, np.arange(num_classes + 1, dtype=np.int64) * count)
        return cls(starts, (pairs % count).astype(np.int32))

    @property
    def counts(self) -> Array:
        """(C,) pictures of each class."""
        return np.diff(self.starts)


class ClassAwareSequence:
    """The endless sequence of draws.

    Args:
        index: pictures of each class; classes without any are left out.
        seed: any two seeds give unrelated sequences.
        with_replacement: draw a class's pictures independently, as the released code does, instead of walking through
            all of them before one comes again.

    Raises:
        ValueError: no class has a picture, or the seed is not from 0 to 2³² − 1.
    """

    def __init__(self, index: ClassIndex, seed: int, *, with_replacement: bool = False) -> None:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {seed}")
        self.index, self.seed, self.with_replacement = index, seed, with_replacement
        self.classes = np.flatnonzero(index.counts)
        if len(self.classes) == 0:
            raise ValueError("no class has a picture")

    def draw(self, first: int, count: int) -> tuple[Array, Array]:
        """Classes and pictures of positions ``first`` … ``first + count − 1``, (count,) each.

        Raises:
            ValueError: negative arguments.
        """
        if first < 0 or count < 0:
            raise ValueError(f"expected positions from 0 on, got {count} from {first}")
        size = len(self.classes)
        begin, end = first // size, -(-(first + count) // size)
        order = np.empty((end - begin, size), dtype=np.int64)
        for row in range(end - begin):
            order[row] = self._generator(_ORDER, 0, begin + row).permutation(size)
        places = order.reshape(-1)[first - begin * size : first - begin * size + count]
        bins = np.arange(first, first + count, dtype=np.int64) // size
        pictures = np.empty(count, dtype=np.int64)
        by_class = np.argsort(places.astype(np.min_scalar_type(size)), kind="stable")  # of small numbers: a radix sort
        bounds = np.searchsorted(places[by_class], np.arange(size + 1))
        for place in range(size):
            rows = by_class[bounds[place] : bounds[place + 1]]
            if len(rows):
                pictures[rows] = self._walk(int(self.classes[place]), bins[rows])
        return self.classes[places], pictures

    def _walk(self, label: int, draws: Array) -> Array:
        """Pictures of some draws, which rise, of one class."""
        own = self.index.pictures[self.index.starts[label] : self.index.starts[label + 1]]
        if self.with_replacement:
            # A counter yields four words, so the word of any draw can be had without those before it.
            skipped, first = int(draws[0]) // 4, int(draws[0]) % 4
            words = self._philox(_DRAW, label, 0).advance(skipped).random_raw(int(draws[-1] - draws[0]) + 1 + first)
            share = (words[first:] >> np.uint64(11)) * 2.0**-53
            return own[(share[draws - draws[0]] * len(own)).astype(np.int64)]
        rounds, steps = np.divmod(draws, len(own))
        found = np.empty(len(draws), dtype=np.int64)
        cuts = np.flatnonzero(np.diff(rounds)) + 1
        for part in np.split(np.arange(len(draws)), cuts):
            shuffled = self._generator(_WALK, label, int(rounds[part[0]])).permutation(own)
            found[part] = shuffled[steps[part]]
        return found

    def _generator(self, stream: int, label: int, number: int) -> np.random.Generator:
        return np.random.Generator(self._philox(stream, label, number))

    def _philox(self, stream: int, label: int, number: int) -> np.random.Philox:
        """Random words of their own for each bin, or round of a class: Philox is keyed, it needs no seeding."""
        return np.random.Philox(key=np.array([self.seed << 32 | stream << 30 | label, number], dtype=np.uint64))
