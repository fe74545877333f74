"""Deformable RoI pooling: one definition, several backends."""

from tsd.ops.backends import BACKENDS
from tsd.ops.deform_roi_pool import FeaturePyramid, deform_roi_pool, map_roi_levels
from tsd.ops.released_pool import released_pool

__all__ = ["BACKENDS", "FeaturePyramid", "deform_roi_pool", "map_roi_levels", "released_pool"]
