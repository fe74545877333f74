"""Detectors of the paper as mmdet plugins: ``custom_imports = dict(imports=['tsd.models'])`` registers them."""

from tsd.models.tsd_bbox_head import TSDBBoxHead
from tsd.models.tsd_roi_head import TSDRoIHead

__all__ = ["TSDBBoxHead", "TSDRoIHead"]
