"""Deformable RoI pooling: one definition, several backends."""

from tsd.ops.deform_roi_pool import BACKENDS, DeformRoIPool, deform_roi_pool, map_roi_levels

__all__ = ["BACKENDS", "DeformRoIPool", "deform_roi_pool", "map_roi_levels"]
