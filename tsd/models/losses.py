"""The progressive constraint (Sec. 2.3): TSD must beat the sibling head by a margin."""

from collections.abc import Callable

from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


def progressive_hinge(sibling: Tensor, tsd: Tensor, margin: float, cap: bool, detach: bool) -> Tensor:
    """|sibling − tsd + margin|₊ of Eq. 7 and 8, elementwise.

    Args:
        sibling: the sibling head's score or IoU, in [0, 1], (N,).
        tsd: that of the TSD branch, (N,).
        margin: m_c or m_r.
        cap: ask for at most 1 − sibling (released code): above that the hinge can't be met.
        detach: no gradient to the sibling head (released code).
    """
    if detach:
        sibling = sibling.detach()
    wanted = (1 - sibling.detach()).clamp(max=margin) if cap else margin
    return (sibling - tsd + wanted).clamp(min=0)


def pc_cls_loss(
    sibling_logits: Tensor,
    tsd_logits: Tensor,
    labels: Tensor,
    *,
    margin: float,
    cap: bool = True,
    detach: bool = True,
    rois: str = "all",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """M_cls (Eq. 7): mean hinge on the confidence of the RoI's own class.

    Args:
        sibling_logits: (N, num_classes + 1), background last.
        tsd_logits: the same of the TSD branch.
        labels: (N,) class of each sampled RoI, ``num_classes`` for background.
        margin: m_c.
        cap: see :func:`progressive_hinge`.
        detach: see :func:`progressive_hinge`.
        rois: ``all`` sampled RoIs, negatives with the background class (released code), or ``positive`` ones.
        normalizer: what the sum is divided by; None: the RoIs that count, at least 1.

    Returns:
        Scalar; 0, connected to the graph, if no RoI counts.
    """
    if rois != "all":
        positive = labels < tsd_logits.shape[1] - 1
        sibling_logits, tsd_logits, labels = sibling_logits[positive], tsd_logits[positive], labels[positive]
    sibling = sibling_logits.softmax(dim=1).gather(1, labels[:, None]).flatten()
    tsd = tsd_logits.softmax(dim=1).gather(1, labels[:, None]).flatten()
    divisor = max(len(labels), 1) if normalizer is None else normalizer
    return progressive_hinge(sibling, tsd, margin, cap, detach).sum() / divisor


def pc_loc_loss(
    sibling_boxes: Tensor,
    tsd_boxes: Tensor,
    targets: Tensor,
    *,
    margin: float,
    cap: bool = True,
    detach: bool = True,
    normalizer: float | Tensor,
    overlaps: Callable[..., Tensor] = bbox_overlaps,
) -> Tensor:
    """M_loc (Eq. 8): hinge on the IoU with the ground truth; negatives are left out.

    Args:
        sibling_boxes: (N, 4) xyxy, positives' boxes by the sibling head.
        tsd_boxes: (N, 4) xyxy, by the TSD branch.
        targets: (N, 4) xyxy, matched ground truth.
        margin: m_r.
        cap: see :func:`progressive_hinge`.
        detach: see :func:`progressive_hinge`.
        normalizer: what the sum is divided by.
        overlaps: IoU of aligned boxes.

    Returns:
        Scalar; 0, connected to the graph, if there are no positives.
    """
    if len(targets) == 0:  # mmdet's IoU of nothing is cut off the graph
        return (sibling_boxes.sum() + tsd_boxes.sum()) * 0
    sibling = overlaps(sibling_boxes, targets, is_aligned=True)
    tsd = overlaps(tsd_boxes, targets, is_aligned=True)
    return progressive_hinge(sibling, tsd, margin, cap, detach).sum() / normalizer
