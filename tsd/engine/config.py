"""Settings of an experiment → an mmengine config that mmdet's own tools can run.

The dumped file needs nothing of ``params/``: ``custom_imports`` brings the package's plugins.
"""

from pathlib import Path
from typing import Any

from tsd.data.coco import read_categories
from tsd.engine.model import build_model, build_test_cfg
from tsd.engine.params import Run, Settings
from tsd.engine.settings import has_masks, resized_to
from tsd.errors import InputError

Config = dict[str, Any]


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
    on_gpu = run.on_gpu
    pretrained = settings["backbone"]["pretrained"]
    return {
        "default_scope": "mmdet",
        "custom_imports": {"imports": [*_models(settings), "tsd.engine.runner", "tsd.engine.adapters"]},
        "runner_type": "StrictRunner",
        "work_dir": str(work_dir),
        "log_level": "WARNING",
        "env_cfg": {
            "cudnn_benchmark": False,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl" if on_gpu else "gloo"},
        },
        "randomness": {"seed": run.seed, "deterministic": not on_gpu},
        "default_hooks": {
            "logger": None,
            "checkpoint": None,
            "timer": None,
            "runtime_info": {"type": "QuietRuntimeInfoHook"},
        },
        "custom_hooks": [{"type": "StatelessRandomHook", "seed": run.seed}],
        "model": build_model(settings, len(classes), suite.recipe, run.seed),
        **({} if pretrained is None else {"pretrained_backbone": pretrained}),
        **_data(run, classes),
        **_schedule(settings, suite.monitor),
    }


def _models(settings: Settings) -> list[str]:
    """Modules that register what the detector is made of."""
    timm = settings["backbone"].get("type") == "timm"
    return ["tsd.models", *(["tsd.models.timm_backbone"] if timm else [])]


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
    if run.suite.is_openimages:
        from tsd.data.openimages import read_classes as read_challenge_classes

        # Display names are not unique: a class is its MID.
        return list(read_challenge_classes(run.suite.challenge.classes)[0])
    masks, sizes = has_masks(run.settings), resized_to(run.settings)
    found = {
        split: read_categories(run.suite.split(split)[0], run.suite.on_degenerate, masks, sizes)
        for split in ("train", "val")
    }
    if found["train"] != found["val"]:
        odd = sorted(set(found["train"]) ^ set(found["val"]))
        raise InputError(
            f"{run.suite.split('val')[0]}: categories differ from those of {run.suite.split('train')[0]}"
            f"{f' in {odd[0]}' if odd else ' in their order'}; both files must list the same, in the same order"
        )
    return [name for _, name in found["train"]]


def _data(run: Run, classes: list[str]) -> Config:
    settings = run.settings
    size, flip = tuple(settings["input"]["size"]), settings["input"]["flip"]
    masks = {"with_mask": True} if has_masks(settings) else {}
    load: list[Config] = [{"type": "StrictLoadImage"}, {"type": "LoadAnnotations", "with_bbox": True, **masks}]
    resize = {"type": "Resize", "scale": size, "keep_ratio": True}
    train_resize = resize
    if "train_sizes" in settings["input"]:
        sizes = [tuple(size) for size in settings["input"]["train_sizes"]]
        train_resize = {"type": "RandomResize", "scale": sizes, "keep_ratio": True}
    legacy = settings.get("coordinates", "continuous") == "legacy"
    to_legacy = [{"type": "InclusiveBoxes"}] if legacy else []
    train_pipeline = [*load, train_resize, {"type": "RandomFlip", "prob": flip}, *to_legacy, {"type": "PackDetInputs"}]
    pack = {"type": "PackDetInputs", "meta_keys": ["img_id", "img_path", "ori_shape", "img_shape", "scale_factor"]}
    workers = run.resources["workers"]
    loader: Config = {"num_workers": workers, "persistent_workers": workers > 0}
    if workers:
        loader["worker_init_fn"] = {"type": "ignore_stop_signals"}
    train_dataset = _dataset(run, "train", classes, train_pipeline) | _training_options(run)
    val_loader: Config = {
        "batch_size": 1,
        **loader,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**_dataset(run, "val", classes, [load[0], resize, pack]), "test_mode": True},
    }
    views = _views(settings, pack)
    merging: Config = {}
    test_loader = val_loader
    if views:
        test_loader = val_loader | {"dataset": val_loader["dataset"] | {"pipeline": [load[0], views]}}
        rcnn = build_test_cfg(settings)["rcnn"]
        merging["tta_model"] = {
            "type": "DetTTAModel",
            "tta_cfg": {"nms": rcnn["nms"], "max_per_img": rcnn["max_per_img"]},
        }
    evaluator = _evaluator(run)
    if run.processes > 1:
        # In mmengine's words: by messages. Its other way is a folder on a shared disk.
        evaluator["collect_device"] = "gpu"
    if legacy:
        evaluator["inclusive"] = True
    return {
        "train_dataloader": {
            "batch_size": settings["schedule"]["batch_size"] // run.processes,
            **loader,
            "sampler": _sampler(run),
            "batch_sampler": {"type": "ResumableBatchSampler"},
            "dataset": {"type": "SeededDataset", "seed": run.seed, "dataset": train_dataset},
        },
        "val_dataloader": val_loader,
        "test_dataloader": test_loader,
        **merging,
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
    }


def _views(settings: Settings, pack: Config) -> Config | None:
    """mmdet's test-time augmentation over sizes and mirroring; None for the one ordinary view.

    Sizes and mirroring enter the evaluation at the end, not the one after each epoch.
    """
    test = settings["test"]
    if "sizes" not in test and not test.get("flip", False):
        return None
    sizes = test.get("sizes", [settings["input"]["size"]])
    resizes = [{"type": "Resize", "scale": tuple(size), "keep_ratio": True} for size in sizes]
    flips = [
        {"type": "RandomFlip", "prob": float(mirrored)} for mirrored in (False, True)[: 1 + test.get("flip", False)]
    ]
    packs = [pack | {"meta_keys": [*pack["meta_keys"], "flip", "flip_direction"]}]
    return {"type": "TestTimeAug", "transforms": [resizes, flips, packs]}


def _dataset(run: Run, split: str, classes: list[str], pipeline: list[Config]) -> Config:
    if run.suite.is_openimages:
        challenge = run.suite.challenge
        kind, annotations, images = "StoredOpenImages", challenge.store(split), challenge.pictures(split)
    else:
        kind, (annotations, images) = "CocoDataset", run.suite.split(split)
    return {
        "type": kind,
        "ann_file": str(annotations),
        "data_prefix": {"img": str(images)},
        "metainfo": {"classes": classes},
        "pipeline": pipeline,
    }


def _training_options(run: Run) -> Config:
    if run.suite.is_openimages:
        options = run.settings["train_data"]
        return {"group_of": options["group_of"], "hierarchy": options["hierarchy"]}
    return {"filter_cfg": {"filter_empty_gt": True, "min_size": 1}}


def _sampler(run: Run) -> Config:
    kind = run.settings.get("train_data", {}).get("sampling", "uniform")
    if kind == "uniform":
        return {"type": "EpochSampler", "seed": run.seed}
    options = {"with_replacement": True} if kind == "class_aware_replacement" else {}
    return {"type": "ClassAwareEpochSampler", "seed": run.seed, **options}


def _evaluator(run: Run) -> Config:
    if run.suite.is_openimages:
        challenge = run.suite.challenge
        return {
            "type": "OpenImagesFigures",
            "folder": str(challenge.folder),
            "classes_count": challenge.classes_count,
        }
    return {"type": "CocoFigures", "annotations": str(run.suite.split("val")[0])}


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
        "optim_wrapper": _optim_wrapper(schedule),
        "param_scheduler": schedulers,
    }


def _optim_wrapper(schedule: Settings) -> Config:
    config = {
        "type": "OptimWrapper",
        "optimizer": _optimizer(schedule),
        "clip_grad": {"max_norm": schedule["clip_norm"], "norm_type": 2},
    }
    precision = schedule.get("amp", "none")
    return config if precision == "none" else config | {"type": "AmpOptimWrapper", "dtype": precision}


def _optimizer(schedule: Settings) -> Config:
    common = {"lr": schedule["lr"], "weight_decay": schedule["weight_decay"]}
    if schedule["optimizer"] == "sgd":
        return {"type": "SGD", "momentum": schedule["momentum"], **common}
    return {"type": "AdamW", **common}
