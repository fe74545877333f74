"""mmdet's and mmengine's view of this package's data and evaluation; importing registers all of them."""

from tsd.engine.adapters.evaluation import CocoFigures
from tsd.engine.adapters.loading import (
    ClassAwareEpochSampler,
    EpochSampler,
    InclusiveBoxes,
    ResumableBatchSampler,
    SeededDataset,
    StrictLoadImage,
)
from tsd.engine.adapters.openimages import OpenImagesFigures, StoredOpenImages
from tsd.engine.adapters.quiet import QuietRuntimeInfoHook
from tsd.engine.adapters.random import StatelessRandomHook
from tsd.engine.adapters.sampling import PositionSampler

__all__ = [
    "ClassAwareEpochSampler",
    "CocoFigures",
    "EpochSampler",
    "InclusiveBoxes",
    "OpenImagesFigures",
    "PositionSampler",
    "QuietRuntimeInfoHook",
    "ResumableBatchSampler",
    "SeededDataset",
    "StatelessRandomHook",
    "StoredOpenImages",
    "StrictLoadImage",
]
