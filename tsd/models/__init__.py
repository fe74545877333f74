"""Detectors of the paper as mmdet plugins: ``custom_imports = dict(imports=['tsd.models'])`` registers them."""

from tsd.models.disentangled import BranchedBBoxHead, BranchedFPN, BranchedResNet, BranchedRoIHead, BranchRPNHead
from tsd.models.senet import SENet
from tsd.models.tsd_bbox_head import TSDBBoxHead
from tsd.models.tsd_roi_head import TSDCascadeRoIHead, TSDRoIHead

__all__ = [
    "BranchRPNHead",
    "BranchedBBoxHead",
    "BranchedFPN",
    "BranchedResNet",
    "BranchedRoIHead",
    "SENet",
    "TSDBBoxHead",
    "TSDCascadeRoIHead",
    "TSDRoIHead",
]
