"""From ``params/`` to resolved experiments: validated, merged, with a stable digest.

Light on purpose: the Snakefile and every verb import it, so it needs neither torch nor mmdet.
"""

import copy
import difflib
import hashlib
import json
import math
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

import tsd
from tsd.errors import InputError, ParamsError
from tsd.files import path_problem, read_yaml

if TYPE_CHECKING:
    from tsd.data.formats.coco_place import Place
    from tsd.data.openimages import Challenge

Settings = dict[str, Any]

CHALLENGE_CLASSES = 500
"""Of the Open Images Challenge 2019."""

TRAIN_DATA = {"group_of": "positive", "hierarchy": "none", "sampling": "class_aware"}
"""How Open Images is trained on unless an experiment says otherwise: as the released code does, but for its drawing
with replacement."""

MONITOR = {"val_epochs": 1, "log_steps": 50, "checkpoint_steps": 1000}
RESOURCES = {"gpu": 1, "nodes": 1, "threads": 4, "mem_mb": 32000, "runtime": 1440, "margin": 5, "workers": 4}


KEPT_CHECKPOINTS = 2
"""States that a training keeps to go on from: the newest, and the one before in case it is damaged."""


Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)
"""Of JSON schemas; they take 2.0 for an integer, this does not."""


BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
"""Rules of a schema on how large a number may be."""


@dataclass(frozen=True)
class Suite:
    """A suite: which experiments run on which data. ``settings[experiment]`` is merged and complete."""

    name: str
    root: Path
    description: str
    data: dict[str, Any]
    recipe: str
    experiments: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Settings]
    monitor: dict[str, int]
    resources: dict[str, Any]
    tables: tuple[str, ...] | None = None
    """Tables that are made; None: all of params/tables.yaml."""
    evaluate: tuple[str, ...] = ()
    """Figures beside COCO's: ``voc``. They change neither trainings nor predictions, and enter no digest."""
    experiment_resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Experiment → what its trainings ask for that ``resources`` does not say, or says otherwise."""

    @property
    def num_classes(self) -> int:
        """Classes of the data, without background.

        Raises:
            InputError: the suite does not say, and its annotation file is not there or broken.
        """
        if self.data["format"] == "openimages":
            return self.challenge.classes_count
        if self.data["format"] == "generated":
            from tsd.data.generate import SceneSpec

            return SceneSpec.from_dict(self.data["generate"]).classes
        if "classes" in self.data:
            return int(self.data["classes"])
        from tsd.data.coco import read_categories

        return len(read_categories(self.split("train")[0]))

    def resources_of(self, experiment: str) -> dict[str, Any]:
        """What a training of the experiment asks for."""
        return self.resources | self.experiment_resources.get(experiment, {})

    def share_of_gpu(self, name: str) -> int:
        """Threads or memory that one GPU of a training has of its node, rounded up; all of it where there is no GPU."""
        gpus = self.resources["gpu"] // self.resources["nodes"]
        return math.ceil(self.resources[name] / max(1, gpus))

    @property
    def is_openimages(self) -> bool:
        """Whether the data is in the files of the Open Images Challenge, and its metric is the challenge's."""
        return bool(self.data["format"] == "openimages")

    @property
    def predictions_suffix(self) -> str:
        """Suffix of predictions files."""
        return "csv" if self.is_openimages else "json"

    @property
    def challenge(self) -> "Challenge":
        """Where the files of an Open Images suite are.

        Raises:
            InputError: the suite's data is of another format.
        """
        if not self.is_openimages:
            got = self.data["format"]
            raise InputError(f"params/suites/{self.name}.yaml: data.format: expected openimages, got {got}")
        from tsd.data.openimages import Challenge

        count = CHALLENGE_CLASSES
        if "generate" in self.data:
            from tsd.data.generate import SceneSpec
            from tsd.data.scenes import class_names

            leaves = class_names(SceneSpec.from_dict(self.data["generate"]).classes)
            count = len(leaves) + len({parent for _, parent in leaves})
        return Challenge(Path(self.data["folder"]), count)

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders and files that hold the suite's data."""
        if "folder" in self.data:
            return (Path(self.data["folder"]),)
        return tuple(Path(self.data[split][kind]) for split in ("train", "val") for kind in ("annotations", "images"))

    @property
    def fetched(self) -> "Place | None":
        """Where the folder is that COCO's archives are unpacked to; None: the suite's data is of another kind."""
        if self.data["format"] != "coco" or "source" not in self.data or "import" in self.data:
            return None
        from tsd.data.formats.coco_place import read_place

        return read_place(self.data)

    @property
    def models_digest(self) -> str:
        """Hash of what determines the suite's networks and how much they compute."""
        made_of = ("import", "source") if "import" in self.data else ()
        data = {key: value for key, value in self.data.items() if key not in made_of}
        return _hash([self.settings, self.recipe, data, tsd.REVISION])

    def network_digests(self) -> dict[str, str]:
        """Experiment → hash of what determines how large its network is and how much it computes for a picture."""
        about = ("title", "test", "schedule", "input", "train_data")
        classes = self.num_classes  # of data of one's own its annotation file is read for it
        found = {}
        for experiment in self.experiments:
            settings = {key: value for key, value in self.settings[experiment].items() if key not in about}
            found[experiment] = _hash([settings, classes, self.recipe, tsd.REVISION])
        return found

    @property
    def sampling_digest(self) -> str:
        """Hash of which pictures an Open Images suite's runs draw, but for the seed."""
        ways = [[settings["train_data"], settings["schedule"]["epochs"]] for settings in self.settings.values()]
        return _hash([sorted(json.dumps(way, sort_keys=True) for way in ways), self.data, tsd.REVISION])

    @property
    def on_degenerate(self) -> Literal["drop", "error"]:
        """What becomes of what training passes over in the suite's annotations, such as boxes of zero size."""
        return "drop" if self.data.get("degenerate") == "drop" else "error"

    def split(self, name: str) -> tuple[Path, Path]:
        """(annotation file, picture folder) of ``train`` or ``val``, relative to the root."""
        if self.is_openimages:
            raise InputError(f"params/suites/{self.name}.yaml: data.format is openimages: it has no COCO annotations")
        if self.data["format"] == "generated":
            folder = Path(self.data["folder"])
            return folder / "annotations" / f"instances_{name}.json", folder / name
        return Path(self.data[name]["annotations"]), Path(self.data[name]["images"])


@dataclass(frozen=True)
class Run:
    """One training: an experiment of a suite with a seed, and the folders that belong to it."""

    suite: Suite
    experiment: str
    seed: int
    data_digest: str
    home: Path | None = None
    """Where its files are if not among the results."""

    @property
    def settings(self) -> Settings:
        return self.suite.settings[self.experiment]

    @property
    def training(self) -> Settings:
        """The settings that determine the weights: all but the test's and the title."""
        return {key: value for key, value in self.settings.items() if key not in ("test", "title")}

    @property
    def resources(self) -> dict[str, Any]:
        """What the training asks for; changes no result."""
        return self.suite.resources_of(self.experiment)

    @property
    def processes(self) -> int:
        """Processes of the training: one per GPU unless its resources say otherwise."""
        return self.resources.get("processes", max(1, self.resources["gpu"]))

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on GPUs: it asks for some, and they are not only a scheduler's."""
        return self.resources["gpu"] > 0 and self.resources.get("device") != "cpu"

    @property
    def digest(self) -> str:
        """Hash of what determines the training: settings, recipe, data and ``tsd.REVISION``; and what the same settings
        meant otherwise before, where they did (:func:`_changes`)."""
        changes = _changes(self.settings, self.suite.recipe)
        known = [self.training, self.suite.recipe, self.data_digest, tsd.REVISION]
        return _hash([*known, changes] if changes else known)

    @property
    def test_digest(self) -> str:
        """Hash of what determines the evaluation beyond the training."""
        return _hash([self.settings["test"], self.data_digest, tsd.REVISION])

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the root."""
        return self.home or Path("results", self.suite.name, "runs", self.experiment, self.digest, f"seed{self.seed}")

    @property
    def checkpoint(self) -> Path:
        """The weights of the finished training."""
        return self.folder / "checkpoint.pth"

    @property
    def eval_folder(self) -> Path:
        return self.folder / "eval" / self.test_digest

    @property
    def predictions(self) -> Path:
        """Detections: COCO results, or for Open Images the CSV that its metric reads."""
        return self.eval_folder / f"predictions.{self.suite.predictions_suffix}"

    @property
    def key(self) -> str:
        """Its name among all runs, and the value of MLflow's tag ``tsd.key``."""
        return f"{self.suite.name}/{self.experiment}/{self.digest}/seed{self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What its checkpoints say of it."""
        keys = ("suite", "experiment", "seed", "digest", "data_digest")
        return dict(
            zip(keys, (self.suite.name, self.experiment, self.seed, self.digest, self.data_digest), strict=True)
        )

    @property
    def metrics_file(self) -> Path:
        """The published copy of the run's metrics, which tables read and DVC versions."""
        name = f"{self.experiment}-seed{self.seed}-{self.digest}-{self.test_digest}.json"
        return Path("results", self.suite.name, "metrics", name)

    @property
    def draws_file(self) -> Path:
        """Beside it: the figures of bootstrap draws, which verdicts and intervals are made of."""
        from tsd.evaluation.draws import SUFFIX

        return self.metrics_file.with_suffix(SUFFIX)

    def describe(self) -> dict[str, Any]:
        """The resolved experiment as plain data, as written to ``experiment.yaml``."""
        return {
            "suite": self.suite.name,
            "experiment": self.experiment,
            "seed": self.seed,
            "digest": self.digest,
            "test_digest": self.test_digest,
            "data_digest": self.data_digest,
            "recipe": self.suite.recipe,
            "revision": tsd.REVISION,
            "data": self.suite.data,
            "params": copy.deepcopy(self.settings),
        }


def _changes(settings: Settings, recipe: str) -> Settings:
    """What today's code makes of settings otherwise than when runs were first recorded; empty for most."""
    changes: Settings = {}
    if settings["head"]["type"] == "tsd":
        preset = _recipes()["recipe_changes"](recipe)
        changes = {key: value for key, value in preset.items() if key not in settings["head"]}
    if settings["backbone"]["pretrained"] is not None:
        changes["pretrained"] = "kept"  # before, they were loaded and then initialised over
    return changes


@cache
def _recipes() -> dict[str, Any]:
    """The names in tsd/models/recipes.py, without its package, which would import torch and mmdet."""
    return runpy.run_path(str(Path(tsd.__file__).parent / "models" / "recipes.py"))


def cautions(run: Run) -> list[str]:
    """Settings of a run that are allowed and known to end badly, a sentence each."""
    head, optimizer = run.settings["head"], run.settings["schedule"]["optimizer"]
    if head["type"] != "tsd" or optimizer != "adamw":
        return []
    preset = _recipes()["recipe_defaults"](run.suite.recipe)
    if head.get("pr_grad", preset["pr_grad"]) != "pooling":
        return []
    return [
        f"{run.experiment} of suite {run.suite.name}: head.pr_grad: pooling with schedule.optimizer: adamw let P̂r "
        "drift off the objects on generated scenes (loss_tsd_bbox 14 instead of 0.3 after 180 steps); pr_grad: all "
        "does not"
    ]


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what Snakemake's ``--config`` or ``--configfile`` gives beside the suite's name.

    Raises:
        InputError: names the key.
    """
    for key in config:
        if key != "suite":
            raise InputError(f"--config {key}: unknown key{hint(str(key), ['suite'])}; known: suite")


def load_suite(name: str, root: Path = Path("."), edits: Mapping[str, Settings] | None = None) -> Suite:
    """Read, validate and merge a suite.

    Args:
        name: of its file.
        root: of the repository.
        edits: settings to lay over entries of ``experiments.yaml``, as an edit of the file would: what extends an
            edited experiment inherits them.

    Raises:
        ParamsError: unknown suite or experiment, unknown key, wrong type; names file and key.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ParamsError(f"suite {name!r}: expected a name of letters, digits, _ and -, of a file in params/suites")
    schemas = _schemas(root)
    experiments_file = root / "params" / "experiments.yaml"
    suite_file = root / "params" / "suites" / f"{name}.yaml"
    if not suite_file.exists():
        known = sorted(path.stem for path in suite_file.parent.glob("*.yaml"))
        raise ParamsError(f"{suite_file}: no such suite; there are: {', '.join(known)}{hint(name, known)}")
    book = _read(experiments_file, schemas["experiments"])
    for experiment, edit in (edits or {}).items():
        if experiment not in book["experiments"]:
            known = book["experiments"]
            raise ParamsError(f"{experiments_file}: no experiment {experiment!r}{hint(experiment, known)}")
        book["experiments"][experiment] = _merge(book["experiments"][experiment], edit)
    if edits:
        validate(book, schemas["experiments"], f"{experiments_file}, edited")
    raw = _read(suite_file, schemas["suite"])
    recipe = raw.get("recipe", "paper")
    if recipe not in book["recipes"]:
        raise ParamsError(f"{suite_file}: recipe: expected one of {', '.join(book['recipes'])}, got {recipe!r}")
    settings = {}
    for index, experiment in enumerate(raw["experiments"]):
        if experiment not in book["experiments"]:
            raise ParamsError(
                f"{suite_file}: experiments.{index}: no experiment {experiment!r} in {experiments_file}"
                f"{hint(experiment, book['experiments'])}"
            )
        layers = (
            {"train_data": TRAIN_DATA} if raw["data"]["format"] == "openimages" else {},
            book["defaults"],
            book["recipes"][recipe],
            *_lineage(book["experiments"], experiment, experiments_file),
            raw.get("override", {}),
        )
        merged = _merge(*layers)
        validate(merged, schemas["complete"], f"{experiments_file}: defaults, for {experiment} of suite {name}")
        settings[experiment] = _relevant(merged)
        _check_complete(settings[experiment], f"{suite_file}: {experiment}")
        if raw["data"]["format"] == "openimages":
            _check_openimages(settings[experiment], f"{suite_file}: {experiment}")
        elif odd := sorted(settings[experiment].get("train_data", {}).keys() - {"sampling"}):
            raise ParamsError(
                f"{suite_file}: {experiment}: train_data.{odd[0]}: only a suite of data.format openimages has it"
            )
    _check_paths(raw["data"], suite_file)
    _check_scenes(raw["data"], suite_file)
    _check_import(raw["data"], suite_file, root)
    _check_fetched(raw["data"], suite_file, root)
    if raw.get("evaluate") and raw["data"]["format"] == "openimages":
        raise ParamsError(f"{suite_file}: evaluate: only annotations in COCO's format are evaluated so; leave it out")
    suite = Suite(
        name=name,
        root=root,
        description=raw["description"],
        data=raw["data"],
        recipe=recipe,
        experiments=tuple(raw["experiments"]),
        seeds=tuple(raw["seeds"]),
        settings=settings,
        monitor=MONITOR | raw.get("monitor", {}),
        tables=tuple(raw["tables"]) if "tables" in raw else None,
        evaluate=tuple(raw.get("evaluate", ())),
        resources=RESOURCES | raw.get("resources", {}),
        experiment_resources=raw.get("experiment_resources", {}),
    )
    for experiment in suite.experiment_resources:
        if experiment not in settings:
            raise ParamsError(
                f"{suite_file}: experiment_resources.{experiment}: the suite has no such experiment"
                f"{hint(experiment, settings)}"
            )
    for experiment, own in settings.items():
        run = Run(suite, experiment, 0, "")
        check_resources(run)
        size, processes = own["schedule"]["batch_size"], run.processes
        if size % processes:
            raise ParamsError(
                f"{suite_file}: {experiment}: schedule.batch_size: {size} pictures a step can't be spread evenly over "
                f"the {processes} processes that resources ask for"
            )
    return suite


def check_resources(run: Run) -> None:
    """Refuse what no scheduler could give, for GPUs and processes are spread evenly over the nodes, and a job that has
    no time to train.

    Raises:
        ParamsError: names the key.
    """
    suite, asked = run.suite, run.resources
    key = f"experiment_resources.{run.experiment}" if run.experiment in suite.experiment_resources else "resources"
    gpus, nodes = asked["gpu"], asked["nodes"]
    if nodes > 1 and (gpus % nodes or not gpus):
        wrong = f"gpu: {gpus} can't be spread evenly over {nodes} nodes; expected a multiple of nodes"
    elif run.processes % nodes:
        wrong = f"processes: {run.processes} can't be spread evenly over {nodes} nodes"
    elif asked["margin"] >= asked["runtime"]:
        wrong = (
            f"margin: a training would stop {asked['margin']} minutes before the end of a job of {asked['runtime']}, "
            "before its first step; expected fewer minutes than runtime"
        )
    else:
        return
    raise ParamsError(f"params/suites/{suite.name}.yaml: {key}: {wrong}")


def _lineage(book: dict[str, Settings], name: str, file: Path) -> list[Settings]:
    """The experiment's settings after those that it extends, eldest first."""
    names = _ancestors(book, name, file)
    return [{key: value for key, value in book[name].items() if key != "extends"} for name in reversed(names)]


def _ancestors(book: dict[str, Settings], name: str, file: Path) -> list[str]:
    """The experiment and those that it extends in turn."""
    names: list[str] = []
    while name:
        if name in names:
            raise ParamsError(f"{file}: experiments.{names[0]}.extends: a circle: {' → '.join([*names, name])}")
        if name not in book:
            raise ParamsError(f"{file}: experiments.{names[-1]}.extends: no experiment {name!r}{hint(name, book)}")
        names.append(name)
        name = book[name].get("extends", "")
    return names


def _check_paths(data: dict[str, Any], where: Path) -> None:
    """Refuse paths that no file can have, or that Snakemake would take for patterns.

    Raises:
        ParamsError: names the key.
    """
    paths = {"folder": data["folder"]} if "folder" in data else {}
    for split in ("train", "val"):
        paths |= {f"{split}.{key}": path for key, path in data.get(split, {}).items()}
    for key, path in paths.items():
        expected = path_problem(path)
        if expected is None and re.search("[{}]", path):
            expected = "a path without braces, which Snakemake takes for a wildcard"
        if expected:
            got = ascii(path) if len(path) <= 100 else f"{path[:100]!a}…"
            raise ParamsError(f"{where}: data.{key}: expected {expected}, got {got}")


def _check_scenes(data: dict[str, Any], where: Path) -> None:
    if "generate" not in data:
        return
    from tsd.data.generate import SceneSpec

    try:
        spec = SceneSpec.from_dict(data["generate"])
    except InputError as error:
        raise ParamsError(f"{where}: data.{error}") from None
    if data["format"] == "openimages" and "openimages" not in spec.formats:
        raise ParamsError(f"{where}: data.generate.formats: expected [coco, openimages], got {list(spec.formats)}")


def _check_import(data: dict[str, Any], where: Path, root: Path) -> None:
    if "import" not in data:
        return
    from tsd.data.formats.voc_archives import check_source, read_archives
    from tsd.data.sources import load_source

    try:
        check_source(read_archives(data), load_source(data["source"], root))
    except ParamsError:
        raise
    except InputError as error:
        raise ParamsError(f"{where}: data.{error}") from None


def _check_fetched(data: dict[str, Any], where: Path, root: Path) -> None:
    if data["format"] != "coco" or "source" not in data or "import" in data:
        return
    from tsd.data.formats.coco_place import read_place, wanted_files
    from tsd.data.sources import load_source

    try:
        read_place(data)
        wanted_files(load_source(data["source"], root))
    except ParamsError:
        raise
    except InputError as error:
        raise ParamsError(f"{where}: data.{error}") from None


def _relevant(settings: Settings) -> Settings:
    """Without the defaults of what the experiment does not have, so that they neither mislead nor enter its digest."""
    if settings["head"]["type"] == "sibling":
        settings["head"].pop("delta_channels", None)
    kind = settings["backbone"].get("type", "resnet")
    own_size = ["depth", "base_channels"]
    for key in {"senet154": ["depth"], "mobilenet_v2": own_size, "timm": own_size}.get(kind, []):
        settings["backbone"].pop(key, None)
    return settings


def lineage(experiment: str, root: Path = Path(".")) -> list[str]:
    """The experiment and those that it extends in turn.

    Raises:
        ParamsError: broken file, unknown experiment, or a circle.
    """
    path = root / "params" / "experiments.yaml"
    book = read_params("experiments", root)["experiments"]
    if experiment not in book:
        raise ParamsError(f"{path}: no experiment {experiment!r}{hint(experiment, book)}")
    return _ancestors(book, experiment, path)


def read_params(name: str, root: Path = Path(".")) -> Any:
    """The content of ``params/<name>.yaml``, checked against its schema.

    Raises:
        ParamsError: missing or broken file, unknown or missing key, wrong type; names file and key.
    """
    return _read(root / "params" / f"{name}.yaml", _schemas(root)[name])


def experiment_names(root: Path = Path(".")) -> list[str]:
    """Entries of ``experiments.yaml``; errors as for :func:`read_params`."""
    return list(read_params("experiments", root)["experiments"])


def suites(root: Path = Path(".")) -> list[str]:
    """Names of all suites."""
    return sorted(path.stem for path in (root / "params" / "suites").glob("*.yaml"))


def get_run(suite: Suite, experiment: str, seed: int, data_digest: str) -> Run:
    """The run of an experiment of the suite.

    Raises:
        ParamsError: the suite does not name that experiment.
    """
    if experiment not in suite.experiments:
        raise ParamsError(
            f"params/suites/{suite.name}.yaml: experiments: no {experiment!r}; "
            f"there are: {', '.join(suite.experiments)}{hint(experiment, suite.experiments)}"
        )
    return Run(suite, experiment, seed, data_digest)


def get_runs(suite: Suite, data_digest: str) -> list[Run]:
    """Every run of the suite, experiments first, then seeds."""
    return [Run(suite, name, seed, data_digest) for name in suite.experiments for seed in suite.seeds]


def existing_metrics(runs: Iterable[Run]) -> list[Path]:
    """Published metrics of runs, those that are there."""
    return [run.metrics_file for run in runs if run.metrics_file.exists()]


def verified_path(suite: Suite, data_digest: str) -> Path:
    """What says that the suite's data has been verified."""
    return Path("results", suite.name, "data", f"{data_digest}.json")


def plan_path(suite: Suite, seed: int) -> Path:
    """Where the list of pictures that a seed's runs draw is; its name changes with what it follows from."""
    return Path("results", suite.name, "sampling", f"{suite.sampling_digest}-seed{seed}.txt")


def _read(path: Path, validator: Draft202012Validator) -> Any:
    content = read_yaml(path)
    validate(content, validator, str(path))
    return content


def validate(content: Any, validator: Draft202012Validator, where: str) -> None:
    """Check plain data against a schema.

    Raises:
        ParamsError: the first rule that is broken; ``where`` (a file, say), the key, and what would be right.
    """
    odd = next(_not_plain(content), None)
    if odd:
        raise ParamsError(f"{where}: {odd}")
    errors = list(_leaves(validator.iter_errors(content)))
    if errors:
        # A wrong value can make its neighbours look unknown (data.format), never the other way round.
        first = min(errors, key=lambda error: error.validator in ("additionalProperties", "required"))
        raise ParamsError(f"{where}: {_sentence(first)}")


def _not_plain(content: Any, key: str = "", above: tuple[int, ...] = ()) -> Iterator[str]:
    """What YAML allows and JSON does not: numbers that are not finite, and aliases that hold themselves."""
    if id(content) in above:
        yield f"{key}: refers to itself"
    elif isinstance(content, float) and not math.isfinite(content):
        yield f"{key}: expected a finite number, got {content}"
    elif isinstance(content, (dict, list)):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for name, value in pairs:
            if isinstance(value, (dict, list, float)):
                yield from _not_plain(value, f"{key}.{name}".lstrip("."), (*above, id(content)))


def _leaves(errors: Iterator[ValidationError]) -> Iterator[ValidationError]:
    for error in errors:
        yield from _leaves(iter(error.context)) if error.context else (error,)


def _sentence(error: ValidationError) -> str:
    key = ".".join(map(str, error.absolute_path))
    prefix = f"{key}: " if key else ""
    got = json.dumps(error.instance, default=str)
    got = got if len(got) <= 100 else f"{got[:100]}…"
    rule: Any = error.validator_value
    schema: Any = error.schema
    instance: Any = error.instance
    if error.validator == "additionalProperties":
        known = list(schema.get("properties", {}))
        unknown = [name for name in instance if name not in known]
        full = ".".join(filter(None, [key, str(unknown[0])]))
        return f"{full}: unknown key{hint(str(unknown[0]), known)}; known: {', '.join(known)}"
    if error.validator == "required":
        missing = [name for name in rule if name not in instance]
        return f"{'.'.join(filter(None, [key, missing[0]]))}: missing key"
    if error.validator == "enum":
        return f"{prefix}expected one of {', '.join(map(str, rule))}, got {got}"
    what = schema.get("description")
    if error.validator == "not":
        return f"{prefix}{what}"
    if error.validator in ("type", *BOUNDS) and schema.get("type") in ("integer", "number"):
        return f"{prefix}expected {_amount(schema)}{f' ({what})' if what else ''}, got {got}"
    if error.validator == "type":
        kind = " or ".join([rule] if isinstance(rule, str) else rule)
        return f"{prefix}expected {what or kind}, got {got}"
    if what and error.validator in ("pattern", "minItems", "maxItems", "minLength"):
        return f"{prefix}expected {what}, got {got}"
    message = error.message
    return f"{prefix}{message if len(message) <= 300 else f'{message[:300]}…'}"


def _amount(schema: Mapping[str, Any]) -> str:
    """In words what numbers a schema takes."""
    kind = {"integer": "an integer", "number": "a number"}[schema["type"]]
    least, above, most, below = (schema.get(bound) for bound in BOUNDS)
    if least == 1 and most is None and schema["type"] == "integer":
        return "a positive integer"
    if above is not None and below is not None:
        return f"{kind} between {above} and {below}"
    start = "" if least is None else f" from {least}"
    start += "" if above is None else f" above {above}"
    if most is not None:
        start += f" to {most}" if above is None else f" and up to {most}"
    return kind + start


def _schemas(root: Path) -> dict[str, Draft202012Validator]:
    folder = root / "workflow" / "schemas"
    if not folder.is_dir():
        raise ParamsError(f"{folder}: no such folder; run the command in the root of the repository")
    content = {path.name.split(".")[0]: yaml.safe_load(path.read_text()) for path in folder.glob("*.schema.yaml")}
    for schema in content.values():
        del schema["$schema"]  # behind a reference it would bring back the library's own idea of an integer
    registry: Registry = Registry().with_resources(
        (name, DRAFT202012.create_resource(schema)) for name, schema in content.items()
    )
    return {name: Validator(schema, registry=registry) for name, schema in content.items()}


def _merge(*layers: Settings) -> Settings:
    merged: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = (
                _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
            )
    return merged


def _check_complete(settings: Settings, where: str) -> None:
    """Cross-key rules that a schema of optional keys cannot say.

    Raises:
        ParamsError: the first rule that is broken.
    """
    problem = next(_contradictions(settings), None)
    if problem:
        raise ParamsError(f"{where}: {problem}")


def _check_openimages(settings: Settings, where: str) -> None:
    """What Open Images does not have.

    Raises:
        ParamsError: masks, or mmdet 1.x's coordinates.
    """
    if settings["detector"] in ("mask_rcnn", "cascade_mask_rcnn"):
        raise ParamsError(f"{where}: detector: Open Images' boxes have no masks, got {settings['detector']}")
    if settings.get("coordinates", "continuous") != "continuous":
        raise ParamsError(f"{where}: coordinates: expected continuous for Open Images, got {settings['coordinates']}")


def _contradictions(settings: Settings) -> Iterator[str]:
    head, backbone, schedule = settings["head"], settings["backbone"], settings["schedule"]
    kind = backbone.get("type", "resnet")
    parts = settings.get("disentangle", "none")
    if head["type"] == "sibling":
        for key in sorted(set(head) - {"type", "fc_channels"}):
            yield f"head.{key}: only a head of type tsd has it"
    if (head.get("pc_cls") or head.get("pc_loc")) and not head.get("joint_sibling", True):
        yield "head.joint_sibling: the progressive constraint compares with the sibling head: true"
    if parts != "none" and head["type"] == "tsd":
        yield "disentangle: expected none with a head of type tsd, which disentangles by itself"
    if parts != "none" and settings["detector"] != "faster_rcnn":
        yield f"disentangle: expected detector faster_rcnn, got {settings['detector']}"
    if parts.startswith("stride") and kind != "resnet":
        yield f"disentangle: expected a backbone of type resnet to be parted within, got {kind}"
    if "rpn_branch" in settings and not parts.startswith("stride"):
        yield "rpn_branch: only a detector with disentangle: stride8, stride16 or stride32 has two branches"
    if "cascade" in settings and not settings["detector"].startswith("cascade"):
        yield "cascade: only the detectors cascade_rcnn and cascade_mask_rcnn have it"
    if ("name" in backbone) != (kind == "timm"):
        yield "backbone.name: expected with a backbone of type timm, and only there: the name of a network of timm"
    for key in ("groups", "width_per_group"):
        if key in backbone and kind != "resnext":
            yield f"backbone.{key}: only a backbone of type resnext has it"
    if kind == "resnext" and backbone["depth"] < 50:
        yield f"backbone.depth: expected 50, 101 or 152 for a resnext, got {backbone['depth']}"
    if backbone.get("dcn") and (kind in ("mobilenet_v2", "timm") or backbone.get("depth", 154) < 50):
        yield "backbone.dcn: expected a backbone of bottleneck blocks: resnet or resnext from 50 layers, or senet154"
    if settings["detector"] in ("mask_rcnn", "cascade_mask_rcnn"):
        for key in ("sizes", "flip"):
            if settings["test"].get(key):
                yield f"test.{key}: masks of several views can't be merged; leave it out for {settings['detector']}"
    strides = settings["rpn"]["strides"]
    if strides[:4] != [4, 8, 16, 32] or any(after != 2 * before for before, after in pairwise(strides)):
        yield f"rpn.strides: expected 4, 8, 16, 32 (RoIs are pooled from these) and doubled ones after, got {strides}"
    if any(after <= before for before, after in pairwise(schedule["milestones"])):
        yield f"schedule.milestones: expected rising epochs, got {schedule['milestones']}"
    if any(step >= schedule["epochs"] for step in schedule["milestones"]):
        yield (
            f"schedule.milestones: expected epochs below schedule.epochs = {schedule['epochs']}, "
            f"got {schedule['milestones']}"
        )
    if schedule["warmup_epochs"] > schedule["epochs"]:
        yield (
            f"schedule.warmup_epochs: {schedule['warmup_epochs']} would go on after the training; expected at most "
            f"schedule.epochs = {schedule['epochs']}"
        )


def hint(name: str, known: Iterable[str]) -> str:
    """``(did you mean …?)`` with the nearest known name, after a space; nothing where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
