"""Settings of an experiment → the detector's part of an mmdet config, as plain data."""

from typing import Any

from tsd.engine.params import Settings
from tsd.engine.settings import has_masks

Config = dict[str, Any]

FEATURE_STRIDES = [4, 8, 16, 32]
"""FPN levels that RoIs are pooled from."""

CASCADE_IOUS = (0.5, 0.6, 0.7)
CASCADE_STDS = ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
"""Of centres and of sizes, for each stage of Cascade R-CNN."""

STAGE_WEIGHTS = (1.0, 0.5, 0.25)

SHARED_STAGES = {"stride8": 2, "stride16": 3, "stride32": 4}
"""Stages of a ResNet that both tasks share (Figure 3)."""

MASK_POOL_SIZE = 14
"""Cells that Mask R-CNN pools; its masks have twice as many."""

_DETECTORS = {
    "faster_rcnn": "FasterRCNN",
    "mask_rcnn": "MaskRCNN",
    "cascade_rcnn": "CascadeRCNN",
    "cascade_mask_rcnn": "CascadeRCNN",
}

_NORMS = {"bn": ("BN", True, False), "syncbn": ("SyncBN", True, False), "frozen_bn": ("BN", True, True)}
"""norm → (layer, trained affine parameters, running statistics frozen); the released code trains the former."""

_MOBILE_LEVELS = {1: 24, 2: 32, 4: 96, 7: 1280}
"""Outputs of MobileNetV2 at strides 4 to 32 and their channels."""


def build_model(settings: Settings, num_classes: int, recipe: str, seed: int = 0) -> Config:
    """The detector.

    Args:
        settings: of an experiment, merged and complete.
        num_classes: without background.
        recipe: preset of the TSD head, see :mod:`tsd.models.recipes`.
        seed: of the sampling of anchors and RoIs, where it depends on the picture alone (``norm_sync``).
    """
    mean, std = _mean_and_std(settings["backbone"])
    config = {
        "type": _DETECTORS[settings["detector"]],
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": mean,
            "std": std,
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
            **({"pad_mask": True} if has_masks(settings) else {}),
        },
        "backbone": _backbone(settings["backbone"]),
        "neck": {
            "type": "FPN",
            "in_channels": _stage_channels(settings["backbone"]),
            "out_channels": settings["neck"]["channels"],
            "num_outs": len(settings["rpn"]["strides"]),
        },
        "rpn_head": _rpn_head(settings),
        "roi_head": _roi_head(settings, num_classes, recipe),
        "train_cfg": _train_cfg(settings),
        "test_cfg": build_test_cfg(settings),
    }
    if settings.get("disentangle", "none") in SHARED_STAGES:
        config = _branched(config, settings)
    if settings.get("coordinates", "continuous") == "legacy":
        config = _legacy(config)
    return _rank_mean(config, seed) if settings.get("norm_sync", False) else config


def is_cascade(settings: Settings) -> bool:
    """Whether the detector refines its boxes in three stages."""
    return settings["detector"].startswith("cascade")


def _branched(config: Config, settings: Settings) -> Config:
    """D_s8, D_s16 or D_s32 out of the plain detector."""
    shared = SHARED_STAGES[settings["disentangle"]]
    roi_head = config["roi_head"]
    return config | {
        "backbone": config["backbone"] | {"type": "BranchedResNet", "shared_stages": shared},
        "neck": config["neck"] | {"type": "BranchedFPN"},
        "rpn_head": config["rpn_head"] | {"type": "BranchRPNHead", "branch": settings.get("rpn_branch", "cls")},
        "roi_head": roi_head
        | {"type": "BranchedRoIHead", "bbox_head": roi_head["bbox_head"] | {"type": "BranchedBBoxHead"}},
    }


def _legacy(config: Config) -> Config:
    """mmdet 1.x's coordinates throughout, see :mod:`tsd.models.legacy`."""
    rpn, roi_head = config["rpn_head"], config["roi_head"]
    heads = roi_head["bbox_head"]
    extractors = {
        name: part | {"type": "InclusiveRoIExtractor"} for name, part in roi_head.items() if name.endswith("extractor")
    }
    anchors = rpn["anchor_generator"] | {"type": "LegacyAnchorGenerator", "center_offset": 0.5}
    boxes = [_legacy_head(h) for h in heads] if isinstance(heads, list) else _legacy_head(heads)
    return config | {
        "rpn_head": _legacy_head(rpn) | {"anchor_generator": anchors},
        "roi_head": roi_head | extractors | {"bbox_head": boxes},
        "train_cfg": _inclusive(config["train_cfg"]),
        "test_cfg": _inclusive(config["test_cfg"]),
    }


def _legacy_head(head: Config) -> Config:
    tsd = {"coordinates": "legacy"} if head["type"] == "TSDBBoxHead" else {}
    return head | {"bbox_coder": head["bbox_coder"] | {"type": "ReleasedBoxCoder"}} | tsd


def _inclusive(part: Any) -> Any:
    """Assigners and suppression that count a box's far corner, and no smallest size of proposals."""
    if isinstance(part, list):
        return [_inclusive(item) for item in part]
    if not isinstance(part, dict):
        return part
    changed = {key: _inclusive(value) for key, value in part.items()}
    if "assigner" in changed:
        changed["assigner"] |= {"iou_calculator": {"type": "InclusiveOverlaps"}}
    if "nms" in changed:
        changed["nms"] |= {"offset": 1}
    if "min_bbox_size" in changed:
        changed["min_bbox_size"] = -1
    return changed


def _rank_mean(config: Config, seed: int) -> Config:
    """Losses and sampling that do not depend on how the batch is spread over processes."""
    roi_head, train = config["roi_head"], config["train_cfg"]
    heads, stages = roi_head["bbox_head"], train["rcnn"]
    masks = {"mask_head": _with_rank_mean(roi_head["mask_head"])} if "mask_head" in roi_head else {}
    return config | {
        "rpn_head": _with_rank_mean(config["rpn_head"]),
        "roi_head": roi_head
        | {"bbox_head": [_with_rank_mean(h) for h in heads] if isinstance(heads, list) else _with_rank_mean(heads)}
        | masks,
        "train_cfg": train
        | {
            "rpn": _by_position(train["rpn"], seed, 0),
            "rcnn": [_by_position(part, seed, 1 + stage) for stage, part in enumerate(stages)]
            if isinstance(stages, list)
            else _by_position(stages, seed, 1),
        },
    }


def _with_rank_mean(head: Config) -> Config:
    if head["type"] == "TSDBBoxHead":
        return head | {"norm_sync": True}
    return head | {"type": f"RankMean{head['type']}"}


def _by_position(part: Config, seed: int, stage: int) -> Config:
    return part | {"sampler": part["sampler"] | {"type": "PositionSampler", "seed": seed, "stage": stage}}


def _backbone(settings: Settings) -> Config:
    layer, trained, frozen = _NORMS[settings["norm"]]
    kind = settings.get("type", "resnet")
    if kind == "timm":
        return {
            "type": "TimmBackbone",
            "name": settings["name"],
            "frozen_stages": settings["frozen_stages"],
            "norm_cfg": {"type": layer, "requires_grad": trained},
            "norm_eval": frozen,
        }
    config: Config = {
        "type": {"resnet": "ResNet", "resnext": "ResNeXt", "senet154": "SENet", "mobilenet_v2": "MobileNetV2"}[kind],
        "out_indices": list(_MOBILE_LEVELS) if kind == "mobilenet_v2" else [0, 1, 2, 3],
        "frozen_stages": settings["frozen_stages"],
        "norm_cfg": {"type": layer, "requires_grad": trained},
        "norm_eval": frozen,
    }
    if kind == "mobilenet_v2":
        return config
    config["base_channels"] = settings["base_channels"]
    if settings.get("dcn", False):
        config["dcn"] = {"type": "TorchvisionDCN"}
        config["stage_with_dcn"] = [False, True, True, True]
    if kind == "senet154":
        return config
    config |= {
        "depth": settings["depth"],
        "stem_channels": settings["base_channels"],
        "num_stages": 4,
        "style": "pytorch",
    }
    if kind == "resnext":
        config |= {"groups": settings.get("groups", 32), "base_width": settings.get("width_per_group", 4)}
    return config


def _mean_and_std(backbone: Settings) -> tuple[list[float], list[float]]:
    """Of RGB, in 0 to 255: ImageNet's, or what the weights of a network of timm want."""
    if backbone.get("type", "resnet") == "timm":
        from tsd.models.timm_backbone import timm_facts

        facts = timm_facts(backbone["name"])
        return list(facts.mean), list(facts.std)
    return [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def _stage_channels(backbone: Settings) -> list[int]:
    """Channels of the backbone's four outputs."""
    if backbone.get("type", "resnet") == "timm":
        from tsd.models.timm_backbone import timm_facts

        return list(timm_facts(backbone["name"]).channels)
    if backbone.get("type", "resnet") == "mobilenet_v2":
        return list(_MOBILE_LEVELS.values())
    expansion = 1 if backbone.get("depth") in (18, 34) else 4
    return [backbone["base_channels"] * expansion * 2**stage for stage in range(4)]


def _rpn_head(settings: Settings) -> Config:
    channels = settings["neck"]["channels"]
    return {
        "type": "RPNHead",
        "in_channels": channels,
        "feat_channels": channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": settings["rpn"]["anchor_scales"],
            "ratios": settings["rpn"]["anchor_ratios"],
            "strides": settings["rpn"]["strides"],
        },
        "bbox_coder": _coder(1.0, 1.0),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1 / 9, "loss_weight": 1.0},
    }


def _roi_head(settings: Settings, num_classes: int, recipe: str) -> Config:
    tsd = settings["head"]["type"] == "tsd"
    config: Config = {
        "bbox_roi_extractor": _extractor(settings, settings["roi"]["pool_size"]),
    }
    if is_cascade(settings):
        config |= {
            "type": "TSDCascadeRoIHead" if tsd else "CascadeRoIHead",
            "num_stages": len(CASCADE_STDS),
            "stage_loss_weights": list(settings.get("cascade", {}).get("stage_weights", STAGE_WEIGHTS)),
            "bbox_head": [
                _bbox_head(settings, num_classes, recipe, stds) | {"reg_class_agnostic": True} for stds in CASCADE_STDS
            ],
        }
    else:
        config |= {
            "type": "TSDRoIHead" if tsd else "StandardRoIHead",
            "bbox_head": _bbox_head(settings, num_classes, recipe, CASCADE_STDS[0]),
        }
    if has_masks(settings):
        config |= {
            "mask_roi_extractor": _extractor(settings, MASK_POOL_SIZE),
            "mask_head": {
                "type": "FCNMaskHead",
                "num_convs": 4,
                "in_channels": settings["neck"]["channels"],
                "conv_out_channels": settings["neck"]["channels"],
                "num_classes": num_classes,
                "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
            },
        }
    return config


def _bbox_head(settings: Settings, num_classes: int, recipe: str, stds: tuple[float, float]) -> Config:
    head, roi = settings["head"], settings["roi"]
    config = {
        "type": "TSDBBoxHead" if head["type"] == "tsd" else "Shared2FCBBoxHead",
        "in_channels": settings["neck"]["channels"],
        "fc_out_channels": head["fc_channels"],
        "roi_feat_size": roi["pool_size"],
        "num_classes": num_classes,
        "bbox_coder": _coder(*stds),
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
    }
    if head["type"] == "tsd":
        options = {key: value for key, value in head.items() if key not in ("type", "fc_channels")}
        return config | {"recipe": recipe, "sampling_ratio": roi["sampling_ratio"], **options}
    if settings.get("disentangle", "none") == "head":
        branches = {"num_shared_fcs": 0, "num_cls_fcs": 2, "num_reg_fcs": 2}
        return config | {"type": "ConvFCBBoxHead", **branches}
    return config


def _extractor(settings: Settings, size: int) -> Config:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {
            "type": "RoIAlign",
            "output_size": size,
            "sampling_ratio": settings["roi"]["sampling_ratio"],
        },
        "out_channels": settings["neck"]["channels"],
        "featmap_strides": FEATURE_STRIDES,
    }


def _train_cfg(settings: Settings) -> Config:
    ious = CASCADE_IOUS if is_cascade(settings) else CASCADE_IOUS[:1]
    stages = [_rcnn_train_cfg(settings, iou) for iou in ious]
    return {
        "rpn": {
            "assigner": _assigner(settings, 0.7, 0.3, 0.3, low_quality=True),
            "sampler": _sampler(settings["rpn"]["samples"], 0.5, add_gt=False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _proposals(settings["rpn"]["train_proposals"], settings["rpn"]["nms_iou"]),
        "rcnn": stages if is_cascade(settings) else stages[0],
    }


def _rcnn_train_cfg(settings: Settings, iou: float) -> Config:
    return {
        "assigner": _assigner(settings, iou, iou, iou, low_quality=False),
        "sampler": _sampler(settings["roi"]["samples"], settings["roi"]["positive_fraction"], add_gt=True),
        "pos_weight": -1,
        "debug": False,
        **({"mask_size": 2 * MASK_POOL_SIZE} if has_masks(settings) else {}),
    }


def build_test_cfg(settings: Settings) -> Config:
    """mmdet's ``test_cfg``: proposals, score threshold and suppression."""
    test = settings["test"]
    kind = {"type": "soft_nms", "min_score": 0.001} if test.get("soft_nms", False) else {"type": "nms"}
    return {
        "rpn": _proposals(test["proposals"], settings["rpn"]["nms_iou"]),
        "rcnn": {
            "score_thr": test["score_threshold"],
            "nms": {**kind, "iou_threshold": test["nms_iou"]},
            "max_per_img": test["max_per_image"],
            **({"mask_thr_binary": 0.5} if has_masks(settings) else {}),
        },
    }


def _coder(centre: float, size: float) -> Config:
    return {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0, 0.0, 0.0, 0.0],
        "target_stds": [centre, centre, size, size],
    }


def _assigner(settings: Settings, positive: float, negative: float, lowest: float, low_quality: bool) -> Config:
    ignores = settings.get("train_data", {}).get("group_of") == "ignore"
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": lowest,
        "match_low_quality": low_quality,
        "iou_calculator": {"type": "ChunkedOverlaps"},
        "ignore_iof_thr": 0.5 if ignores else -1,  # what lies in a group box, by the metric's threshold
    }


def _sampler(number: int, positive_fraction: float, add_gt: bool) -> Config:
    return {
        "type": "RandomSampler",
        "num": number,
        "pos_fraction": positive_fraction,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_gt,
    }


def _proposals(number: int, nms_iou: float) -> Config:
    return {
        "nms_pre": number,
        "max_per_img": number,
        "nms": {"type": "nms", "iou_threshold": nms_iou},
        "min_bbox_size": 0,
    }
