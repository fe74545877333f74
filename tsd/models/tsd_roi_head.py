"""RoI head that hands the pyramid to the TSD head, and P̂r to the decoding."""

from functools import partial
from typing import Any

import torch
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.utils import empty_instances
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmengine.structures import InstanceData
from torch import Tensor

from tsd.models.tsd_bbox_head import TSDOutput
from tsd.ops import deform_roi_pool


@MODELS.register_module()
class TSDRoIHead(StandardRoIHead):
    """Faster (and Mask) R-CNN's RoI head with :class:`tsd.models.TSDBBoxHead`.

    At test time ``test_cfg.rcnn.keep_proposals=True`` adds to each result, aligned with its boxes and in the same
    coordinates: ``proposals`` (n, 4) P, ``reg_proposals`` (n, 4) P̂r, and ``cls_points`` (n, k, k, 2) of P̂c.
    """

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Any]:
        extractor = self.bbox_roi_extractor
        levels = x[: extractor.num_inputs]
        feats = extractor(levels, rois)
        head = self.bbox_head
        pool = partial(
            deform_roi_pool,
            levels,
            rois,
            strides=extractor.featmap_strides,
            output_size=head.roi_feat_size[0],
            sampling_ratio=head.sampling_ratio,
            gamma=head.gamma,
            finest_scale=extractor.finest_scale,
            backend=head.backend,
        )
        output = head(feats, rois, pool)
        return {"cls_score": output.cls_score, "bbox_pred": output.bbox_pred, "bbox_feats": feats, "tsd": output}

    def bbox_loss(self, x: tuple[Tensor, ...], sampling_results: list[Any]) -> dict[str, Any]:
        """Losses of the box head, see :meth:`TSDBBoxHead.losses`."""
        rois = bbox2roi([result.priors for result in sampling_results])
        results = self._bbox_forward(x, rois)
        results["loss_bbox"] = self.bbox_head.losses(results["tsd"], rois, sampling_results, self.train_cfg)
        return results

    def predict_bbox(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each picture, decoded from P̂r; boxes xyxy, in original pixels if ``rescale``."""
        proposals = [result.bboxes for result in rpn_results_list]
        rois = bbox2roi(proposals)
        if len(rois) == 0:
            return self._nothing(batch_img_metas, rois, rcnn_test_cfg)
        output: TSDOutput = self._bbox_forward(x, rois)["tsd"]
        counts = [len(boxes) for boxes in proposals]
        reg_rois, scores, deltas = (
            part.split(counts) for part in (output.reg_rois, output.cls_score, output.bbox_pred)
        )
        if rcnn_test_cfg is None or not rcnn_test_cfg.get("keep_proposals", False):
            return self.bbox_head.predict_by_feat(
                rois=reg_rois,
                cls_scores=scores,
                bbox_preds=deltas,
                batch_img_metas=batch_img_metas,
                rcnn_test_cfg=rcnn_test_cfg,
                rescale=rescale,
            )
        raw = self.bbox_head.predict_by_feat(
            rois=reg_rois, cls_scores=scores, bbox_preds=deltas, batch_img_metas=batch_img_metas, rescale=rescale
        )
        points = self.bbox_head.cls_points(rois, output.cls_offset).split(counts)
        results = []
        for index, meta in enumerate(batch_img_metas):
            extras = {
                "proposals": proposals[index],
                "reg_proposals": reg_rois[index][:, 1:],
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
        results = super().predict_mask(x, batch_img_metas, results_list, rescale=rescale)
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
        source = torch.div(kept, self.bbox_head.num_classes, rounding_mode="floor")
        for name, value in extras.items():
            result.set_field(value[source], name)
        return result

    def _nothing(self, metas: list[dict], rois: Tensor, config: Any) -> list[InstanceData]:
        results = empty_instances(
            metas,
            rois.device,
            task_type="bbox",
            box_type=self.bbox_head.predict_box_type,
            num_classes=self.bbox_head.num_classes,
            score_per_cls=config is None,
        )
        if config is not None and config.get("keep_proposals", False):
            size = self.bbox_head.roi_feat_size[0]
            for result in results:
                result.proposals, result.reg_proposals = rois.new_zeros((0, 4)), rois.new_zeros((0, 4))
                result.cls_points = rois.new_zeros((0, size, size, 2))
        return results


def _to_original(extras: dict[str, Tensor], meta: dict) -> dict[str, Tensor]:
    """Proposals and points in pixels of the original picture instead of the network's input."""
    factor = [1 / value for value in meta["scale_factor"]]
    return {
        "proposals": scale_boxes(extras["proposals"], factor),
        "reg_proposals": scale_boxes(extras["reg_proposals"], factor),
        "cls_points": extras["cls_points"] * extras["cls_points"].new_tensor(factor),
    }
