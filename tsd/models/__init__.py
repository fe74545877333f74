"""Detectors of the paper as mmdet plugins: ``custom_imports = dict(imports=['tsd.models'])`` registers them.

``tsd.models.timm_backbone`` is imported by itself where it is wanted, since timm takes seconds to import.
"""

from tsd.models.deform_conv import TorchvisionDCN
from tsd.models.disentangled import BranchedBBoxHead, BranchedFPN, BranchedResNet, BranchedRoIHead, BranchRPNHead
from tsd.models.legacy import InclusiveOverlaps, InclusiveRoIExtractor, ReleasedBoxCoder
from tsd.models.norm_sync import (
    RankMeanBranchedBBoxHead,
    RankMeanBranchRPNHead,
    RankMeanConvFCBBoxHead,
    RankMeanFCNMaskHead,
    RankMeanRPNHead,
    RankMeanShared2FCBBoxHead,
)
from tsd.models.overlaps import ChunkedOverlaps
from tsd.models.senet import SENet
from tsd.models.tsd_bbox_head import TSDBBoxHead
from tsd.models.tsd_roi_head import TSDCascadeRoIHead, TSDRoIHead

__all__ = [
    "BranchRPNHead",
    "BranchedBBoxHead",
    "BranchedFPN",
    "BranchedResNet",
    "BranchedRoIHead",
    "ChunkedOverlaps",
    "InclusiveOverlaps",
    "InclusiveRoIExtractor",
    "RankMeanBranchRPNHead",
    "RankMeanBranchedBBoxHead",
    "RankMeanConvFCBBoxHead",
    "RankMeanFCNMaskHead",
    "RankMeanRPNHead",
    "RankMeanShared2FCBBoxHead",
    "ReleasedBoxCoder",
    "SENet",
    "TSDBBoxHead",
    "TSDCascadeRoIHead",
    "TSDRoIHead",
    "TorchvisionDCN",
]
