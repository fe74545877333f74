"""Losses that do not depend on how a batch is spread over processes (``norm_sync: true``).

mmdet divides each loss by counts of its own process, so the average over processes is not the loss of the whole batch.
Here every count is replaced by its mean over processes; averaging gradients, as DDP does, then gives exactly the
gradient of one process with all pictures. Every process takes part in the same collectives whatever its data are.
"""

from typing import Any

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead, Shared2FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from tsd.models.disentangled import BranchedBBoxHead, BranchRPNHead


def mean_over_ranks(counts: Tensor) -> Tensor:
    """Mean of each count over all processes, not below one in all of them together; float64, shape as ``counts``."""
    mean = counts.detach().to(torch.float64, copy=True)
    all_reduce(mean, op="mean")
    return mean.clamp(min=1 / get_world_size())


class RankMeanAnchors:
    """Mixin for anchor heads: the sampled anchors that both losses are divided by."""

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As the parent's, with the fifth item, the divisor, averaged."""
        targets: tuple[Any, ...] = super().get_targets(*args, **kwargs)  # type: ignore[misc]
        count = torch.tensor([float(targets[4])], device=targets[0][0].device)
        return (*targets[:4], mean_over_ranks(count)[0], *targets[5:])


class RankMeanBoxes:
    """Mixin for box heads: classification is divided by the RoIs with a weight, regression by the sampled ones."""

    def loss(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """As the parent's; a loss is linear in one over its divisor."""
        losses: dict[str, Tensor] = super().loss(  # type: ignore[misc]
            cls_score, bbox_pred, rois, labels, label_weights, *args, **kwargs
        )
        own = torch.stack(((label_weights > 0).sum(), torch.tensor(len(labels), device=labels.device))).double()
        weighted, sampled = (own.clamp(min=1) / mean_over_ranks(own)).to(cls_score.dtype).unbind()
        # mmdet leaves the loss out where there is no RoI: its parameters would be unused.
        losses["loss_cls"] = losses.get("loss_cls", cls_score.sum()) * weighted
        losses["loss_bbox"] = losses["loss_bbox"] * sampled
        return losses


@MODELS.register_module()
class RankMeanRPNHead(RankMeanAnchors, RPNHead):
    """mmdet's RPN head with averaged divisors."""


@MODELS.register_module()
class RankMeanBranchRPNHead(RankMeanAnchors, BranchRPNHead):
    """:class:`tsd.models.disentangled.BranchRPNHead` with averaged divisors."""


@MODELS.register_module()
class RankMeanShared2FCBBoxHead(RankMeanBoxes, Shared2FCBBoxHead):
    """mmdet's 2-fc head with averaged divisors."""


@MODELS.register_module()
class RankMeanConvFCBBoxHead(RankMeanBoxes, ConvFCBBoxHead):
    """mmdet's head with branches, with averaged divisors."""


@MODELS.register_module()
class RankMeanBranchedBBoxHead(RankMeanBoxes, BranchedBBoxHead):
    """:class:`tsd.models.disentangled.BranchedBBoxHead` with averaged divisors."""


@MODELS.register_module()
class RankMeanFCNMaskHead(FCNMaskHead):
    """mmdet's mask head, its loss divided by the mean number of positives."""

    def loss_and_target(
        self, mask_preds: Tensor, sampling_results: list[Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As the parent's."""
        result: dict[str, Any] = super().loss_and_target(mask_preds, sampling_results, *args, **kwargs)
        own = torch.tensor(len(mask_preds), device=mask_preds.device).double()
        share = (own.clamp(min=1) / mean_over_ranks(own)).to(mask_preds.dtype)
        result["loss_mask"]["loss_mask"] = result["loss_mask"]["loss_mask"] * share
        return result
