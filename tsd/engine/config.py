"""Settings of an experiment → an mmengine config that mmdet's own tools can run.

The dumped file needs nothing of ``params/``: ``custom_imports`` brings the package's plugins.
"""

from pathlib import Path
from typing import Any

from tsd.data.coco import load_coco
from tsd.engine.params import Run, Settings
from tsd.errors import InputError

Config = dict[str, Any]

FEATURE_STRIDES = [4, 8, 16, 32]
"""FPN levels that RoIs are pooled from."""

_NORMS = {"bn": ("BN", True, False), "syncbn": ("SyncBN", True, False), "frozen_bn": ("BN", True, True)}
"""norm → (layer, trained affine parameters, running statistics frozen); the released code trains the former."""


def build_config(run: Run, work_dir: Path) -> Config:
    """The whole config of a run as plain data.

    Reads the annotation files for the classes and refuses files that can't be trained on.

    Args:
        run: the run.
        work_dir: where mmengine writes its own log.

    Raises:
        InputError: an annotation file is broken, or train and val list different categories.
    """
    settings, suite = run.settings, run.suite
    classes = read_classes(run)
    on_gpu = suite.resources["gpu"] > 0
    return {
        "default_scope": "mmdet",
        "custom_imports": {"imports": ["tsd.models", "tsd.engine.runner", "tsd.engine.adapters"]},
        "runner_type": "StrictRunner",
        "work_dir": str(work_dir),
        "log_level": "WARNING",
        "env_cfg": {
            "cudnn_benchmark": False,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl" if on_gpu else "gloo"},
        },
        "randomness": {"seed": run.seed, "deterministic": not on_gpu},
        "default_hooks": {"logger": None, "checkpoint": None, "timer": {"type": "IterTimerHook"}},
        "custom_hooks": [{"type": "StatelessRandomHook", "seed": run.seed}],
        "model": _model(settings, len(classes), suite.recipe),
        **_data(run, classes),
        **_schedule(settings, suite.monitor),
    }


def load_config(run: Run) -> Any:
    """The run's config as mmengine's ``Config``, its plugins imported (mmengine does that for files only)."""
    from mmengine.config import Config as MMConfig
    from mmengine.utils import import_modules_from_strings

    content = build_config(run, run.folder / "log")
    import_modules_from_strings(**content["custom_imports"])
    return MMConfig(content)


def read_classes(run: Run) -> list[str]:
    """Category names in the order of the annotation file; the label of a category is its place in it.

    Raises:
        InputError: broken annotation files, or different categories in train and val.
    """
    found = {}
    for split in ("train", "val"):
        annotations, images = run.suite.split(split)
        content = load_coco(annotations, images, on_degenerate=run.suite.on_degenerate)
        found[split] = [(category["id"], category["name"]) for category in content["categories"]]
    if found["train"] != found["val"]:
        odd = sorted(set(found["train"]) ^ set(found["val"]))
        raise InputError(
            f"{run.suite.split('val')[0]}: categories differ from those of {run.suite.split('train')[0]}"
            f"{f' in {odd[0]}' if odd else ' in their order'}; both files must list the same, in the same order"
        )
    return [name for _, name in found["train"]]


def _model(settings: Settings, num_classes: int, recipe: str) -> Config:
    channels = settings["neck"]["channels"]
    return {
        "type": "FasterRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": _backbone(settings["backbone"]),
        "neck": {
            "type": "FPN",
            "in_channels": _stage_channels(settings["backbone"]),
            "out_channels": channels,
            "num_outs": len(settings["rpn"]["strides"]),
        },
        "rpn_head": {
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
        },
        "roi_head": _roi_head(settings, num_classes, recipe),
        "train_cfg": _train_cfg(settings),
        "test_cfg": {
            "rpn": _proposals(settings["test"]["proposals"], settings["rpn"]["nms_iou"]),
            "rcnn": {
                "score_thr": settings["test"]["score_threshold"],
                "nms": {"type": "nms", "iou_threshold": settings["test"]["nms_iou"]},
                "max_per_img": settings["test"]["max_per_image"],
            },
        },
    }


def _backbone(settings: Settings) -> Config:
    layer, trained, frozen = _NORMS[settings["norm"]]
    return {
        "type": "ResNet",
        "depth": settings["depth"],
        "base_channels": settings["base_channels"],
        "stem_channels": settings["base_channels"],
        "num_stages": 4,
        "out_indices": [0, 1, 2, 3],
        "frozen_stages": settings["frozen_stages"],
        "norm_cfg": {"type": layer, "requires_grad": trained},
        "norm_eval": frozen,
        "style": "pytorch",
    }


def _stage_channels(backbone: Settings) -> list[int]:
    expansion = 1 if backbone["depth"] in (18, 34) else 4
    return [backbone["base_channels"] * expansion * 2**stage for stage in range(4)]


def _roi_head(settings: Settings, num_classes: int, recipe: str) -> Config:
    head, roi = settings["head"], settings["roi"]
    bbox_head = {
        "type": "TSDBBoxHead" if head["type"] == "tsd" else "Shared2FCBBoxHead",
        "in_channels": settings["neck"]["channels"],
        "fc_out_channels": head["fc_channels"],
        "roi_feat_size": roi["pool_size"],
        "num_classes": num_classes,
        "bbox_coder": _coder(0.1, 0.2),
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
    }
    if head["type"] == "tsd":
        options = {key: value for key, value in head.items() if key not in ("type", "fc_channels")}
        bbox_head |= {"recipe": recipe, "sampling_ratio": roi["sampling_ratio"], **options}
    return {
        "type": "TSDRoIHead" if head["type"] == "tsd" else "StandardRoIHead",
        "bbox_roi_extractor": {
            "type": "SingleRoIExtractor",
            "roi_layer": {
                "type": "RoIAlign",
                "output_size": roi["pool_size"],
                "sampling_ratio": roi["sampling_ratio"],
            },
            "out_channels": settings["neck"]["channels"],
            "featmap_strides": FEATURE_STRIDES,
        },
        "bbox_head": bbox_head,
    }


def _train_cfg(settings: Settings) -> Config:
    return {
        "rpn": {
            "assigner": _assigner(0.7, 0.3, 0.3, low_quality=True),
            "sampler": _sampler(settings["rpn"]["samples"], 0.5, add_gt=False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _proposals(settings["rpn"]["train_proposals"], settings["rpn"]["nms_iou"]),
        "rcnn": {
            "assigner": _assigner(0.5, 0.5, 0.5, low_quality=False),
            "sampler": _sampler(settings["roi"]["samples"], settings["roi"]["positive_fraction"], add_gt=True),
            "pos_weight": -1,
            "debug": False,
        },
    }


def _coder(centre: float, size: float) -> Config:
    return {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0, 0.0, 0.0, 0.0],
        "target_stds": [centre, centre, size, size],
    }


def _assigner(positive: float, negative: float, lowest: float, low_quality: bool) -> Config:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": lowest,
        "match_low_quality": low_quality,
        "ignore_iof_thr": -1,
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


def _data(run: Run, classes: list[str]) -> Config:
    settings, suite = run.settings, run.suite
    size, flip = tuple(settings["input"]["size"]), settings["input"]["flip"]
    load: list[Config] = [{"type": "StrictLoadImage"}, {"type": "LoadAnnotations", "with_bbox": True}]
    resize = {"type": "Resize", "scale": size, "keep_ratio": True}
    train_pipeline = [*load, resize, {"type": "RandomFlip", "prob": flip}, {"type": "PackDetInputs"}]
    meta = ["img_id", "img_path", "ori_shape", "img_shape", "scale_factor"]
    test_pipeline = [load[0], resize, {"type": "PackDetInputs", "meta_keys": meta}]
    workers = suite.resources["workers"]
    loader = {"num_workers": workers, "persistent_workers": workers > 0}
    train_dataset = {
        **_dataset(run, "train", classes, train_pipeline),
        "filter_cfg": {"filter_empty_gt": True, "min_size": 1},
    }
    test_loader = {
        "batch_size": 1,
        **loader,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**_dataset(run, "val", classes, test_pipeline), "test_mode": True},
    }
    evaluator = {"type": "CocoFigures", "annotations": str(suite.split("val")[0])}
    return {
        "train_dataloader": {
            "batch_size": settings["schedule"]["batch_size"],
            **loader,
            "sampler": {"type": "EpochSampler", "seed": run.seed},
            "batch_sampler": {"type": "ResumableBatchSampler"},
            "dataset": {"type": "SeededDataset", "seed": run.seed, "dataset": train_dataset},
        },
        "val_dataloader": test_loader,
        "test_dataloader": test_loader,
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
    }


def _dataset(run: Run, split: str, classes: list[str], pipeline: list[Config]) -> Config:
    annotations, images = run.suite.split(split)
    return {
        "type": "CocoDataset",
        "ann_file": str(annotations),
        "data_prefix": {"img": str(images)},
        "metainfo": {"classes": classes},
        "pipeline": pipeline,
    }


def _schedule(settings: Settings, monitor: dict[str, int]) -> Config:
    schedule = settings["schedule"]
    schedulers: list[Config] = [
        {
            "type": "MultiStepLR",
            "by_epoch": True,
            "begin": 0,
            "end": schedule["epochs"],
            "milestones": schedule["milestones"],
            "gamma": 0.1,
        }
    ]
    if schedule["warmup_epochs"]:
        schedulers.insert(
            0,
            {
                "type": "LinearLR",
                "by_epoch": True,
                "begin": 0,
                "end": schedule["warmup_epochs"],
                "start_factor": schedule["warmup_start"],
                "convert_to_iter_based": True,
            },
        )
    return {
        "train_cfg": {
            "type": "ResumableTrainLoop",
            "max_epochs": schedule["epochs"],
            "val_interval": monitor["val_epochs"],
        },
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": _optimizer(schedule),
            "clip_grad": {"max_norm": schedule["clip_norm"], "norm_type": 2},
        },
        "param_scheduler": schedulers,
    }


def _optimizer(schedule: Settings) -> Config:
    common = {"lr": schedule["lr"], "weight_decay": schedule["weight_decay"]}
    if schedule["optimizer"] == "sgd":
        return {"type": "SGD", "momentum": schedule["momentum"], **common}
    return {"type": "AdamW", **common}
