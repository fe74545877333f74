"""The TSD head (Sec. 2.1, 2.2): task-aware spatial disentanglement with its optional sibling head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.losses import accuracy
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from tsd.models.legacy import inclusive_overlaps
from tsd.models.losses import pc_cls_loss, pc_loc_loss
from tsd.models.norm_sync import mean_over_ranks
from tsd.models.recipes import recipe_defaults

MANNERS = ("shared", "pointwise", "proposalwise")
"""How a derived proposal is learnt (Table 4): not at all, a shift per cell (Eq. 5), or one for the RoI (Eq. 3)."""

Divisor = float | Tensor

Pool = Callable[[Tensor], Tensor]
"""Offset (K, 2, P, P) → features (K, C, P, P) of the RoIs deformed by it."""


@dataclass
class TSDOutput:
    """What the head says of K RoIs.

    Attributes:
        cls_score: (K, num_classes + 1) logits from P̂c.
        bbox_pred: (K, 4 · num_classes) deltas relative to P̂r.
        reg_rois: (K, 5) P̂r; carries gradient to ΔR.
        cls_offset: (K, 2, P, P) ΔC before γ and RoI size, None where P̂c is P.
        sibling_cls: (K, num_classes + 1) logits of the sibling head, None where it is not run.
        sibling_bbox: (K, 4 · num_classes) its deltas, relative to P.
    """

    cls_score: Tensor
    bbox_pred: Tensor
    reg_rois: Tensor
    cls_offset: Tensor | None = None
    sibling_cls: Tensor | None = None
    sibling_bbox: Tensor | None = None


@MODELS.register_module()
class TSDBBoxHead(BBoxHead):
    """Two task branches on two derived proposals, and, in training, the sibling head on P.

    Args:
        fc_out_channels: width of the hidden layers of branches and sibling (paper: 1024).
        delta_channels: width of the delta generator, {256, 256, ·} in the paper; its first layer is shared.
        recipe: ``paper`` or ``released``: presets for the arguments that are None, see :mod:`tsd.models.recipes`.
        joint_sibling: train the sibling head along (Table 2).
        pc_cls: progressive constraint on classification, Eq. 7 (Table 3).
        pc_loc: progressive constraint on localisation, Eq. 8 (Table 3).
        margin_cls: m_c.
        margin_loc: m_r.
        margin_cap: hinge at most 1 − the sibling's score (released code; not in Eq. 7 and 8).
        sibling_detach: PC sends no gradient to the sibling head (released code).
        pr_grad: where P̂r carries gradient: ``all``: pooling, targets and decoding (released), or ``pooling`` only.
        pc_cls_rois: RoIs in M_cls: ``all`` sampled (released code) or ``positive``.
        pc_loc_normalizer: M_loc is divided by the ``positives`` (released code) or all ``sampled`` RoIs.
        gamma: γ of Eq. 3 and 5 (released code: 0.1).
        cls_proposal: manner of P̂c, see :data:`MANNERS`.
        reg_proposal: manner of P̂r. A pointwise P̂r has no box: targets and decoding then refer to P.
        sampling_ratio: samples per cell and axis in the derived proposals' pooling.
        backend: of :func:`tsd.ops.deform_roi_pool`.
        norm_sync: divide each loss by the mean over processes of what each would divide by, so that their averaged
            gradients are those of one process with the whole batch; else each process divides by its own (released).
        coordinates: ``continuous``, or ``legacy`` for released checkpoints: sides are x2 − x1 + 1 (mmdet 1.x) and the
            derived proposals are pooled by :func:`tsd.ops.released_pool`.
        **kwargs: of mmdet's ``BBoxHead``. Background is class ``num_classes``.

    Raises:
        ValueError: an argument is not one of its values, PC without the sibling head, or an option of ``BBoxHead``
            that has no meaning here.
    """

    def __init__(
        self,
        fc_out_channels: int = 1024,
        delta_channels: int = 256,
        *,
        recipe: str = "paper",
        joint_sibling: bool = True,
        pc_cls: bool = True,
        pc_loc: bool = True,
        margin_cls: float | None = None,
        margin_loc: float | None = None,
        margin_cap: bool | None = None,
        sibling_detach: bool | None = None,
        pr_grad: str | None = None,
        pc_cls_rois: str | None = None,
        pc_loc_normalizer: str | None = None,
        gamma: float = 0.1,
        cls_proposal: str = "pointwise",
        reg_proposal: str = "proposalwise",
        sampling_ratio: int = 2,
        backend: str = "auto",
        norm_sync: bool = False,
        coordinates: str = "continuous",
        **kwargs: Any,
    ) -> None:
        for name in ("reg_decoded_bbox", "with_avg_pool"):
            if kwargs.get(name):
                raise ValueError(f"{name}: expected False, as the branches regress deltas from all cells of the RoI")
        super().__init__(**kwargs)
        given = {
            "margin_cls": margin_cls,
            "margin_loc": margin_loc,
            "margin_cap": margin_cap,
            "sibling_detach": sibling_detach,
            "pr_grad": pr_grad,
            "pc_cls_rois": pc_cls_rois,
            "pc_loc_normalizer": pc_loc_normalizer,
        }
        chosen = recipe_defaults(recipe) | {key: value for key, value in given.items() if value is not None}
        _one_of("pr_grad", chosen["pr_grad"], ("pooling", "all"))
        _one_of("pc_cls_rois", chosen["pc_cls_rois"], ("all", "positive"))
        _one_of("pc_loc_normalizer", chosen["pc_loc_normalizer"], ("positives", "sampled"))
        _one_of("coordinates", coordinates, ("continuous", "legacy"))
        _one_of("cls_proposal", cls_proposal, MANNERS)
        _one_of("reg_proposal", reg_proposal, MANNERS)
        if (pc_cls or pc_loc) and not joint_sibling:
            raise ValueError("pc_cls and pc_loc compare with the sibling head: they need joint_sibling=True")
        self.margin_cls: float = chosen["margin_cls"]
        self.margin_loc: float = chosen["margin_loc"]
        self.margin_cap: bool = chosen["margin_cap"]
        self.sibling_detach: bool = chosen["sibling_detach"]
        self.pr_grad: str = chosen["pr_grad"]
        self.pc_cls_rois: str = chosen["pc_cls_rois"]
        self.pc_loc_normalizer: str = chosen["pc_loc_normalizer"]
        self.joint_sibling, self.pc_cls, self.pc_loc = joint_sibling, pc_cls, pc_loc
        self.gamma, self.sampling_ratio, self.backend = gamma, sampling_ratio, backend
        self.cls_proposal, self.reg_proposal, self.norm_sync = cls_proposal, reg_proposal, norm_sync
        self.legacy = coordinates == "legacy"
        self.init_cfg = None
        self._build(fc_out_channels, delta_channels)

    def _build(self, width: int, delta_width: int) -> None:
        inputs = self.in_channels * self.roi_feat_area
        scores = self.num_classes + 1
        deltas = 4 if self.reg_class_agnostic else 4 * self.num_classes
        cells = {"pointwise": self.roi_feat_area, "proposalwise": 1}
        manners = {"cls": self.cls_proposal, "reg": self.reg_proposal}
        if any(manner != "shared" for manner in manners.values()):
            self.delta_shared = nn.Linear(inputs, delta_width)
        self.delta = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Linear(delta_width, delta_width), nn.ReLU(), nn.Linear(delta_width, 2 * cells[manner])
                )
                for task, manner in manners.items()
                if manner != "shared"
            }
        )
        self.cls_fcs, self.fc_cls = _two_fcs(inputs, width), nn.Linear(width, scores)
        self.reg_fcs, self.fc_reg = _two_fcs(inputs, width), nn.Linear(width, deltas)
        if self.joint_sibling:
            self.sibling_fcs = _two_fcs(inputs, width)
            self.sibling_fc_cls = nn.Linear(width, scores)
            self.sibling_fc_reg = nn.Linear(width, deltas)

    def init_weights(self) -> None:
        """As released: hidden and delta layers N(0, 1/√fan_in), scores N(0, 0.01), deltas N(0, 0.001), biases 0.

        The released code leaves TSD's own two predictors at torch's default, which looks like an oversight; here they
        start as the sibling's do.
        """
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if name.endswith("fc_cls"):
                nn.init.normal_(module.weight, std=0.01)
            elif name.endswith("fc_reg"):
                nn.init.normal_(module.weight, std=0.001)
            else:
                nn.init.kaiming_normal_(module.weight, a=1)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, rois: Tensor, pool: Pool) -> TSDOutput:
        """Scores and deltas of each RoI.

        Args:
            x: (K, C, P, P) RoIAlign features of P.
            rois: (K, 5) P.
            pool: features of deformed RoIs.
        """
        flat = x.flatten(1)
        offsets = self._offsets(flat, x.shape[-1])
        cls_feature = flat if offsets["cls"] is None else pool(offsets["cls"]).flatten(1)
        reg_feature = flat if offsets["reg"] is None else pool(offsets["reg"]).flatten(1)
        output = TSDOutput(
            cls_score=self.fc_cls(self.cls_fcs(cls_feature)),
            bbox_pred=self.fc_reg(self.reg_fcs(reg_feature)),
            reg_rois=self._translate(rois, offsets["reg"]),
            cls_offset=offsets["cls"],
        )
        if self.training and self.joint_sibling:
            hidden = self.sibling_fcs(flat)
            output.sibling_cls, output.sibling_bbox = self.sibling_fc_cls(hidden), self.sibling_fc_reg(hidden)
        return output

    def _offsets(self, flat: Tensor, size: int) -> dict[str, Tensor | None]:
        """(K, 2, P, P) of each task in units of γ × RoI size, None for a shared proposal (Eq. 3 and 5)."""
        offsets: dict[str, Tensor | None] = {"cls": None, "reg": None}
        if len(self.delta) == 0:
            return offsets
        hidden = self.delta_shared(flat).relu()
        for task, layers in self.delta.items():
            delta = layers(hidden)
            if delta.shape[1] == 2:
                offsets[task] = delta[:, :, None, None].expand(-1, -1, size, size)
            else:
                offsets[task] = delta.view(-1, 2, size, size)
        return offsets

    def _translate(self, rois: Tensor, offset: Tensor | None) -> Tensor:
        """P̂r = P + γ · ΔR · (w, h) (Eq. 4), not clipped; P itself unless P̂r is proposal-wise."""
        if offset is None or self.reg_proposal != "proposalwise":
            return rois
        sides = self._sides(rois)
        shift = self.gamma * offset[:, :, 0, 0].to(rois.dtype) * sides
        return torch.cat((rois[:, :1], rois[:, 1:] + shift.repeat(1, 2)), dim=1)

    def cls_points(self, rois: Tensor, offset: Tensor | None) -> Tensor:
        """Centres of the cells of P̂c, (K, P, P, 2) as x, y in pixels (the points of Figure 5)."""
        size = self.roi_feat_size[0]
        steps = (torch.arange(size, device=rois.device, dtype=rois.dtype) + 0.5) / size
        fraction = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)[None]
        if offset is not None:
            fraction = fraction + self.gamma * offset.permute(0, 2, 3, 1).to(rois.dtype)
        return rois[:, None, None, 1:3] + fraction * self._sides(rois)[:, None, None, :]

    def _sides(self, rois: Tensor) -> Tensor:
        """(K, 2) widths and heights."""
        return rois[:, 3:] - rois[:, 1:3] + int(self.legacy)

    def losses(
        self, output: TSDOutput, rois: Tensor, sampling_results: list[Any], sibling_targets: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """All losses of the head by name (the TSD part of Eq. 9 and the sibling's), each of weight 1.

        Classification is averaged over the sampled RoIs; box losses are summed over the positives and divided by the
        number of sampled RoIs. RoIs, labels and matches are those of P; P̂r is never matched again.

        Args:
            output: of :meth:`forward` in training.
            rois: (K, 5) P, sampled; positives first within each picture.
            sampling_results: mmdet's, one per picture.
            sibling_targets: from mmdet's ``get_targets``: labels, their weights, and deltas relative to P.
        """
        labels, weights, targets, _ = sibling_targets
        positive = _positives(sampling_results, labels.device)
        weighted, sampled, positives = self._normalizers(weights, len(positive))
        truth = torch.cat([result.pos_gt_bboxes for result in sampling_results])
        reg_rois = output.reg_rois if self.pr_grad == "all" else output.reg_rois.detach()
        tsd_targets = self.bbox_coder.encode(reg_rois[positive, 1:], truth)
        losses = {
            "loss_tsd_cls": self._cls_loss(output.cls_score, labels, weights, weighted),
            "loss_tsd_bbox": self._box_loss(output.bbox_pred, labels, positive, tsd_targets, sampled),
            "tsd_acc": _accuracy(output.cls_score, labels),
        }
        if output.sibling_cls is None or output.sibling_bbox is None:
            return losses
        losses["loss_cls"] = self._cls_loss(output.sibling_cls, labels, weights, weighted)
        losses["loss_bbox"] = self._box_loss(output.sibling_bbox, labels, positive, targets[positive], sampled)
        losses["acc"] = _accuracy(output.sibling_cls, labels)
        options = {"cap": self.margin_cap, "detach": self.sibling_detach}
        if self.pc_cls:
            losses["loss_pc_cls"] = pc_cls_loss(
                output.sibling_cls,
                output.cls_score,
                labels,
                margin=self.margin_cls,
                rois=self.pc_cls_rois,
                normalizer=sampled if self.pc_cls_rois == "all" else positives,
                **options,
            )
        if self.pc_loc:
            sibling_deltas = _of_class(output.sibling_bbox, labels, positive, self.reg_class_agnostic)
            tsd_deltas = _of_class(output.bbox_pred, labels, positive, self.reg_class_agnostic)
            losses["loss_pc_loc"] = pc_loc_loss(
                self.bbox_coder.decode(rois[positive, 1:], sibling_deltas),
                self.bbox_coder.decode(reg_rois[positive, 1:], tsd_deltas),
                truth,
                overlaps=inclusive_overlaps if self.legacy else bbox_overlaps,
                margin=self.margin_loc,
                normalizer=positives if self.pc_loc_normalizer == "positives" else sampled,
                **options,
            )
        return losses

    def _normalizers(self, weights: Tensor, positives: int) -> tuple[Divisor, Divisor, Divisor]:
        """RoIs that have a weight, sampled RoIs, positives: what losses are divided by, never zero."""
        weighted = (weights > 0).sum()
        if not self.norm_sync:
            return weighted.clamp(min=1).to(weights.dtype), max(len(weights), 1), max(positives, 1)
        counts = torch.stack((weighted, *torch.tensor([len(weights), positives]).to(weighted).unbind()))
        weighted, sampled, positive = mean_over_ranks(counts).to(weights.dtype)
        return weighted, sampled, positive

    def _cls_loss(self, scores: Tensor, labels: Tensor, weights: Tensor, divisor: Divisor) -> Tensor:
        if len(scores) == 0:
            return scores.sum()
        return self.loss_cls(scores, labels, weights, avg_factor=divisor)

    def _box_loss(self, deltas: Tensor, labels: Tensor, positive: Tensor, targets: Tensor, divisor: Divisor) -> Tensor:
        predicted = _of_class(deltas, labels, positive, self.reg_class_agnostic)
        if len(positive) == 0:
            return predicted.sum()
        if targets.requires_grad:
            # mmdet's losses treat targets as constants; |p - t| depends on the difference alone.
            predicted, targets = predicted - targets, torch.zeros_like(targets)
        return self.loss_bbox(predicted, targets, avg_factor=divisor)


def _positives(sampling_results: list[Any], device: torch.device) -> Tensor:
    """Places of the positives among the sampled RoIs of all pictures, (N,); no value is read back from the device."""
    places, start = [], 0
    for result in sampling_results:
        places.append(torch.arange(start, start + len(result.pos_priors), device=device))
        start += len(result.pos_priors) + len(result.neg_priors)
    return torch.cat(places)


def _of_class(deltas: Tensor, labels: Tensor, positive: Tensor, agnostic: bool) -> Tensor:
    """Deltas of the positives' own classes, (N, 4)."""
    if agnostic:
        return deltas[positive]
    return deltas.view(len(deltas), deltas.shape[1] // 4, 4)[positive, labels[positive]]


def _accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    if len(scores) == 0:
        return scores.new_zeros(1)
    return accuracy(scores.detach(), labels)


def _two_fcs(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
