"""RoI heads that hand the pyramid to the TSD head, and P̂r to the decoding."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.utils import empty_instances
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmengine.structures import InstanceData
from torch import Tensor

from tsd.models.tsd_bbox_head import TSDBBoxHead, TSDOutput
from tsd.ops import FeaturePyramid, released_pool


class TSDPrediction(ABC):
    """Detection with a TSD head: decoding from P̂r, and, if asked for, what each detection was derived from.

    At test time ``test_cfg.rcnn.keep_proposals=True`` adds to each result, aligned with its boxes and in the same
    coordinates: ``proposals`` (n, 4) P, ``reg_proposals`` (n, 4) P̂r, and ``cls_points`` (n, k, k, 2) of P̂c. A mixin
    for mmdet's RoI heads.
    """

    @property
    @abstractmethod
    def last_head(self) -> TSDBBoxHead:
        """The head whose boxes are the detections."""

    @abstractmethod
    def run_stages(
        self, x: tuple[Tensor, ...], rois: Tensor, counts: list[int], metas: list[dict]
    ) -> tuple[Tensor, Tensor, TSDOutput]:
        """(P of the last stage (K, 5), logits (K, num_classes + 1), the last stage's output)."""

    def predict_bbox(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each picture, decoded from P̂r; boxes xyxy, in original pixels if ``rescale``."""
        counts = [len(result.bboxes) for result in rpn_results_list]
        rois = bbox2roi([result.bboxes for result in rpn_results_list])
        head = self.last_head
        if len(rois) == 0:
            return self._nothing(batch_img_metas, rois, rcnn_test_cfg)
        rois, logits, output = self.run_stages(x, rois, counts, batch_img_metas)
        found = {
            "rois": output.reg_rois.split(counts),
            "cls_scores": logits.split(counts),
            "bbox_preds": output.bbox_pred.split(counts),
            "batch_img_metas": batch_img_metas,
            "rescale": rescale,
        }
        if rcnn_test_cfg is None or not rcnn_test_cfg.get("keep_proposals", False):
            return head.predict_by_feat(rcnn_test_cfg=rcnn_test_cfg, **found)
        raw = head.predict_by_feat(**found)
        proposals = rois[:, 1:].split(counts)
        points = head.cls_points(rois, output.cls_offset).split(counts)
        results = []
        for index, meta in enumerate(batch_img_metas):
            extras = {
                "proposals": proposals[index],
                "reg_proposals": found["rois"][index][:, 1:],
                "cls_points": points[index],
            }
            if rescale:
                extras = _to_original(extras, meta)
            results.append(self._suppress(raw[index], extras, rcnn_test_cfg))
        return results

    def predict_mask(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict],
        results_list: list[InstanceData],
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Masks of the final boxes. With a mask branch it is this step that rescales, boxes and proposals alike."""
        results: list[InstanceData] = super().predict_mask(  # type: ignore[misc]
            x, batch_img_metas, results_list, rescale=rescale
        )
        for result, meta in zip(results, batch_img_metas):
            if rescale and "proposals" in result:
                kept = {name: result.get(name) for name in ("proposals", "reg_proposals", "cls_points")}
                for name, value in _to_original(kept, meta).items():
                    result.set_field(value, name)
        return results

    def _suppress(self, raw: InstanceData, extras: dict[str, Tensor], config: Any) -> InstanceData:
        """NMS that remembers which RoI each detection comes from."""
        result = InstanceData()
        boxes, labels, kept = multiclass_nms(
            raw.bboxes, raw.scores, config.score_thr, config.nms, config.max_per_img, return_inds=True
        )
        result.bboxes, result.scores, result.labels = boxes[:, :4], boxes[:, 4], labels
        source = torch.div(kept, self.last_head.num_classes, rounding_mode="floor")
        for name, value in extras.items():
            result.set_field(value[source], name)
        return result

    def _nothing(self, metas: list[dict], rois: Tensor, config: Any) -> list[InstanceData]:
        results = empty_instances(
            metas,
            rois.device,
            task_type="bbox",
            box_type=self.last_head.predict_box_type,
            num_classes=self.last_head.num_classes,
            score_per_cls=config is None,
        )
        if config is not None and config.get("keep_proposals", False):
            size = self.last_head.roi_feat_size[0]
            for result in results:
                result.proposals, result.reg_proposals = rois.new_zeros((0, 4)), rois.new_zeros((0, 4))
                result.cls_points = rois.new_zeros((0, size, size, 2))
        return results


@MODELS.register_module()
class TSDRoIHead(TSDPrediction, StandardRoIHead):
    """Faster (and Mask) R-CNN's RoI head with :class:`tsd.models.TSDBBoxHead`; see :class:`TSDPrediction`."""

    @property
    def last_head(self) -> TSDBBoxHead:
        """The only one."""
        return self.bbox_head

    def run_stages(
        self, x: tuple[Tensor, ...], rois: Tensor, counts: list[int], metas: list[dict]
    ) -> tuple[Tensor, Tensor, TSDOutput]:
        """See :class:`TSDPrediction`; there is one stage."""
        output: TSDOutput = self._bbox_forward(x, rois)["tsd"]
        return rois, output.cls_score, output

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Any]:
        return run_head(self.bbox_head, self.bbox_roi_extractor, x, rois)

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list[Any]) -> dict[str, Any]:
        """Losses of the box head, see :meth:`TSDBBoxHead.losses`."""
        rois = bbox2roi([result.priors for result in sampling_results])
        results = self._bbox_forward(x, rois)
        targets = self.bbox_head.get_targets(sampling_results, self.train_cfg)
        results["loss_bbox"] = self.bbox_head.losses(results["tsd"], rois, sampling_results, targets)
        return results


@MODELS.register_module()
class TSDCascadeRoIHead(TSDPrediction, CascadeRoIHead):
    """Cascade R-CNN's RoI head (Cai & Vasconcelos, CVPR 2018) with a whole TSD head in each stage.

    As released: a stage's proposals are the boxes that the TSD branch of the stage before decodes from P̂r, without
    gradient; at test the TSD logits of all stages are averaged, and the boxes are the last stage's. See
    :class:`TSDPrediction`; P is there the proposal of the last stage.
    """

    @property
    def last_head(self) -> TSDBBoxHead:
        """The last stage's."""
        return self.bbox_head[-1]

    def run_stages(
        self, x: tuple[Tensor, ...], rois: Tensor, counts: list[int], metas: list[dict]
    ) -> tuple[Tensor, Tensor, TSDOutput]:
        """See :class:`TSDPrediction`."""
        logits = []
        for stage, head in enumerate(self.bbox_head):
            output: TSDOutput = self._bbox_forward(stage, x, rois)["tsd"]
            logits.append(output.cls_score)
            if stage < self.num_stages - 1:
                rois = _next_rois(head, output, counts, metas)
        return rois, torch.stack(logits).mean(dim=0), output

    def _bbox_forward(self, stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Any]:
        return run_head(self.bbox_head[stage], self.bbox_roi_extractor[stage], x, rois)

    def bbox_loss(self, stage: int, x: tuple[Tensor, ...], sampling_results: list[Any]) -> dict[str, Any]:
        """Losses of one stage, see :meth:`TSDBBoxHead.losses`; ``rois`` is P̂r, from which the next stage is refined."""
        head = self.bbox_head[stage]
        rois = bbox2roi([result.priors for result in sampling_results])
        results = self._bbox_forward(stage, x, rois)
        targets = head.get_targets(sampling_results, self.train_cfg[stage])
        results["loss_bbox"] = head.losses(results["tsd"], rois, sampling_results, targets)
        return results | {"rois": results["tsd"].reg_rois, "bbox_targets": targets}

    def _refine_roi(
        self,
        x: tuple[Tensor, ...],
        rois: Tensor,
        batch_img_metas: list[dict],
        num_proposals_per_img: Sequence[int],
    ) -> tuple[Any, ...]:
        counts = list(num_proposals_per_img)
        _, logits, output = self.run_stages(x, rois, counts, batch_img_metas)
        return output.reg_rois.split(counts), logits.split(counts), output.bbox_pred.split(counts)


def run_head(head: TSDBBoxHead, extractor: Any, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Any]:
    """Pool P, run the head, which pools P̂c and P̂r from the same levels.

    Args:
        head: the TSD head.
        extractor: mmdet's ``SingleRoIExtractor``.
        x: the pyramid, finest level first.
        rois: (K, 5) P.

    Returns:
        mmdet's ``bbox_results``, and the whole :class:`TSDOutput` as ``tsd``.
    """
    levels = x[: extractor.num_inputs]
    pyramid = FeaturePyramid(
        levels, extractor.featmap_strides, finest_scale=extractor.finest_scale, backend=head.backend
    )
    feats = _pool_proposals(extractor, pyramid, rois, head.training)
    options: dict[str, Any] = {"output_size": head.roi_feat_size[0], "gamma": head.gamma}
    if head.legacy:
        pool = partial(released_pool, pyramid, rois, **options)
    else:
        pool = partial(pyramid.pool, rois, sampling_ratio=head.sampling_ratio, **options)
    output = head(feats, rois, pool)
    return {"cls_score": output.cls_score, "bbox_pred": output.bbox_pred, "bbox_feats": feats, "tsd": output}


def _pool_proposals(extractor: Any, pyramid: FeaturePyramid, rois: Tensor, training: bool) -> Tensor:
    """(K, C, P, P) features of P: from the table that the derived proposals are pooled from, if it is RoIAlign.

    Training with the ``torch`` backend keeps mmdet's operator, whose rounding the recorded runs were made with.
    """
    layer = extractor.roi_layers[0]
    is_roi_align = type(extractor) is SingleRoIExtractor and isinstance(layer, RoIAlign)
    if not is_roi_align or not layer.aligned or layer.pool_mode != "avg" or (training and pyramid.backend == "torch"):
        return extractor(tuple(pyramid.features), rois)
    return pyramid.pool(rois, None, output_size=layer.output_size[0], sampling_ratio=layer.sampling_ratio, gamma=0.0)


def _next_rois(head: TSDBBoxHead, output: TSDOutput, counts: list[int], metas: list[dict]) -> Tensor:
    """(K, 5): boxes of the likeliest class, decoded from P̂r and clipped to their pictures."""
    labels = output.cls_score[:, :-1].argmax(dim=1)
    parts = zip(output.reg_rois.split(counts), labels.split(counts), output.bbox_pred.split(counts), metas, strict=True)
    return torch.cat(
        [
            torch.cat((rois[:, :1], head.regress_by_class(rois[:, 1:], label, deltas, meta)), dim=1)
            for rois, label, deltas, meta in parts
        ]
    )


def _to_original(extras: dict[str, Tensor], meta: dict) -> dict[str, Tensor]:
    """Proposals and points in pixels of the original picture instead of the network's input."""
    factor = [1 / value for value in meta["scale_factor"]]
    return {
        "proposals": scale_boxes(extras["proposals"], factor),
        "reg_proposals": scale_boxes(extras["reg_proposals"], factor),
        "cls_points": extras["cls_points"] * extras["cls_points"].new_tensor(factor),
    }
