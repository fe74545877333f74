"""params/ → resolved experiments: precedence, digests, and an error for every mistake that names file and key."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml

import tsd
from tsd.engine import params
from tsd.engine.identity import ABSENT, data_digest
from tsd.engine.params import get_run, load_suite, suites
from tsd.errors import InputError, ParamsError
from tsd.files import read_yaml


def edit(project: Path, change, name="params/suites/tiny.yaml"):
    path = project / name
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def run_of(experiment="baseline", seed=0):
    suite = load_suite("tiny")
    return get_run(suite, experiment, seed, data_digest(suite))


def test_every_suite_of_the_project_is_valid(project):
    for name in suites():
        suite = load_suite(name)
        assert suite.experiments
        assert suite.seeds


def test_later_layers_win(project):
    suite = load_suite("tiny")
    settings = suite.settings["tsd_pc"]
    assert settings["head"]["type"] == "tsd"  # the experiment
    assert settings["head"]["fc_channels"] == 32  # the suite
    assert settings["schedule"]["momentum"] == 0.9  # the defaults
    assert suite.settings["baseline"]["head"] == {"type": "sibling", "fc_channels": 32}


def test_the_digest_is_stable_and_follows_what_determines_the_training(project, monkeypatch):
    first = run_of().digest
    assert run_of().digest == first
    assert run_of(seed=1).digest == first
    assert run_of(seed=1).folder != run_of().folder
    edit(project, lambda s: s["override"]["schedule"].update(lr=0.002))
    assert run_of().digest != first
    edit(project, lambda s: s["override"]["schedule"].update(lr=0.0005))
    assert run_of().digest == first
    edit(project, lambda s: s["data"]["generate"].update(seed=8))
    assert run_of().digest != first
    edit(project, lambda s: s["data"]["generate"].update(seed=7))
    edit(project, lambda s: s["resources"].update(threads=2))
    edit(project, lambda s: s["monitor"].update(log_steps=3))
    assert run_of().digest == first
    monkeypatch.setattr(tsd, "REVISION", tsd.REVISION + 1)
    assert run_of().digest != first


def test_a_test_setting_changes_the_evaluation_and_not_the_training(project):
    first = run_of()
    digest, test_digest = first.digest, first.test_digest
    edit(project, lambda s: s["override"]["test"].update(score_threshold=0.05))
    assert run_of().digest == digest
    assert run_of().test_digest != test_digest


def test_one_experiments_edit_leaves_the_others_alone(project):
    before = {name: run_of(name).digest for name in ("baseline", "tsd_pc")}
    edit(project, lambda e: e["experiments"]["tsd_pc"]["head"].update(margin_cls=0.5), "params/experiments.yaml")
    assert run_of("baseline").digest == before["baseline"]
    assert run_of("tsd_pc").digest != before["tsd_pc"]


def test_a_new_pin_of_the_data_is_other_data(project):
    first = run_of().digest
    out = {"path": "data/tiny/manifest.json", "md5": "0" * 32, "size": 1, "hash": "md5"}
    (project / "data.dvc").write_text(yaml.safe_dump({"outs": [out]}))
    assert run_of().digest != first


def leaves(settings, above=()):
    for key, value in settings.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))


def test_a_default_that_is_missing_is_named_before_anything_is_planned(project):
    path = project / "params/experiments.yaml"
    text = path.read_text()
    for *above, key in leaves(yaml.safe_load(text)["defaults"]):
        content = yaml.safe_load(text)
        place = content["defaults"]
        for name in above:
            place = place[name]
        del place[key]
        path.write_text(yaml.safe_dump(content))
        named = ".".join([*above, key])
        with pytest.raises(
            ParamsError, match=rf"experiments\.yaml: defaults, for .* of suite coco: {named}.*: missing"
        ):
            load_suite("coco")


def test_the_digests_of_recorded_runs_stay(root, monkeypatch):
    monkeypatch.chdir(root)
    recorded = sorted((root / "benchmarks/evidence").glob("*/*.json"))
    assert len(recorded) >= 30
    for path in recorded:
        suite = load_suite(path.parent.name)
        experiment, seed, digest, test_digest = re.fullmatch(r"(.+)-seed(\d+)-(\w+)-(\w+)", path.stem).groups()
        known = json.loads(path.read_text())["run"]["data_digest"]
        assert known == data_digest(suite) or suite.data["format"] != "generated"  # photographs are not here
        run = get_run(suite, experiment, int(seed), known)
        assert (run.digest, run.test_digest) == (digest, test_digest), path.name
    suite = load_suite("demo")
    demo = {name: get_run(suite, name, 0, data_digest(suite)).digest for name in suite.experiments}
    assert demo == {"baseline": "d3e86b57e7f8", "tsd_joint": "05df4352791a", "tsd_pc": "af9912d70530"}


def with_presets(monkeypatch, **changed):
    """Today's presets of the recipe `released` with some changed."""
    namespace = dict(params._recipes())
    recipes = namespace["RECIPES"] | {"released": namespace["RECIPES"]["released"] | changed}
    monkeypatch.setitem(namespace["recipe_changes"].__globals__, "RECIPES", recipes)


def test_a_changed_preset_changes_the_digests_of_what_it_sets(project, monkeypatch):
    names = ("baseline", "tsd_pc")
    before = {name: run_of(name).digest for name in names}
    edit(project, lambda e: e["experiments"]["tsd_pc"]["head"].update(margin_cls=0.4), "params/experiments.yaml")
    explicit = run_of("tsd_pc").digest
    with_presets(monkeypatch, margin_cls=0.25)
    assert run_of("tsd_pc").digest == explicit  # says its own
    edit(project, lambda e: e["experiments"]["tsd_pc"]["head"].pop("margin_cls"), "params/experiments.yaml")
    assert run_of("tsd_pc").digest != before["tsd_pc"]
    assert run_of("baseline").digest == before["baseline"]  # has no such head


def test_recipe_papers_present_gradient_is_in_the_digests_of_its_tsd_heads(project):
    edit(project, lambda s: s.update(recipe="paper"))
    today = run_of("tsd_pc")
    assert params._changes(today.settings, "paper") == {"pr_grad": "all"}
    assert params._changes(run_of("baseline").settings, "paper") == {}
    edit(project, lambda e: e["experiments"]["tsd_pc"]["head"].update(pr_grad="pooling"), "params/experiments.yaml")
    assert params._changes(run_of("tsd_pc").settings, "paper") == {}


def test_runs_from_pretrained_weights_are_not_those_that_lost_them(project):
    edit(project, lambda s: s["override"]["backbone"].update(pretrained="resnet18"))
    run = run_of()
    lost = params._hash([run.training, run.suite.recipe, run.data_digest, tsd.REVISION])
    assert run.digest != lost


def test_learning_p_r_by_the_pooling_alone_with_adamw_is_warned_of(project):
    assert params.cautions(run_of("tsd_pc")) == []
    edit(project, lambda e: e["experiments"]["tsd_pc"]["head"].update(pr_grad="pooling"), "params/experiments.yaml")
    (sentence,) = params.cautions(run_of("tsd_pc"))
    assert sentence.startswith("tsd_pc of suite tiny: head.pr_grad: pooling with schedule.optimizer: adamw")
    assert params.cautions(run_of("baseline")) == []
    edit(project, lambda s: s["override"]["schedule"].update(optimizer="sgd"))
    assert params.cautions(run_of("tsd_pc")) == []


def set_key(*path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_key("override", "schedule", "epochs", value="13 epochs"),
            'tiny.yaml: override.schedule.epochs: expected a positive integer, got "13 epochs"',
        ),
        (
            set_key("override", "schedule", "epoch", value=3),
            "tiny.yaml: override.schedule.epoch: unknown key (did you mean 'epochs'?)",
        ),
        (set_key("override", "head", "gamma", value=-1), "override.head.gamma: expected a number above 0, got -1"),
        (set_key("override", "backbone", "norm", value="group"), "override.backbone.norm: expected one of bn, syncbn"),
        (set_key("experiments", value=["tsd_cp"]), "experiments.0: no experiment 'tsd_cp' in"),
        (set_key("experiments", value=[]), "experiments:"),
        (set_key("seeds", value=[0, 0]), "seeds:"),
        (set_key("recipe", value="papers"), "recipe: expected one of paper, released"),
        (set_key("data", "format", value="voc"), "data.format: expected one of generated, coco"),
        (set_key("resources", "gpus", value=8), "resources.gpus: unknown key (did you mean 'gpu'?)"),
        (set_key("resources", "device", value="gpu"), 'resources.device: expected one of cpu, got "gpu"'),
        (
            set_key("resources", "margin", value=-1),
            "resources.margin: expected a number from 0 to 2147483647 (minutes before the end of a Slurm job at which",
        ),
        (
            set_key("resources", "margin", value=10),
            "resources: margin: a training would stop 10 minutes before the end of a job of 10, before its first step",
        ),
        (
            set_key("resources", "gpu", value=-1),
            "resources.gpu: expected an integer from 0 to 2147483647 (GPUs of one training, over all its nodes), got",
        ),
        (
            set_key("resources", "mem_mb", value=10**30),
            "resources.mem_mb: expected an integer from 1 to 2147483647 (memory of each node in MB), got 1000000",
        ),
        (set_key("resources", "threads", value="all"), "resources.threads: expected an integer from 1 to 2147483647 ("),
        (
            set_key("override", "extends", value="tsd_pc"),
            "override.extends: only an entry of experiments.yaml extends another; name that experiment in the suite",
        ),
        (
            set_key("override", "schedule", "warmup_epochs", value=3),
            "schedule.warmup_epochs: 3 would go on after the training; expected at most schedule.epochs = 2",
        ),
        (
            set_key("override", "schedule", "warmup_start", value=0),
            "schedule.warmup_start: expected a number above 0 and up to 1 (the part of lr at the first step), got 0",
        ),
        (
            set_key("experiment_resources", value={"tsd_cp": {"gpu": 8}}),
            "experiment_resources.tsd_cp: the suite has no such experiment (did you mean 'tsd_pc'?)",
        ),
        (
            set_key("experiment_resources", value={"tsd_pc": {"gpus": 8}}),
            "experiment_resources.tsd_pc.gpus: unknown key (did you mean 'gpu'?)",
        ),
        (
            set_key("experiment_resources", value={"tsd_pc": {"gpu": 3}}),
            "tsd_pc: schedule.batch_size: 4 pictures a step can't be spread evenly over the 3 processes",
        ),
        (set_key("experiment_resources", value={3: {"gpu": 4}}), "experiment_resources"),
        (
            set_key("experiment_resources", value={"tsd_pc": {"gpu": 4, "nodes": 3}}),
            "tiny.yaml: experiment_resources.tsd_pc: gpu: 4 can't be spread evenly over 3 nodes",
        ),
        (set_key("resources", "nodes", value=2), "tiny.yaml: resources: gpu: 0 can't be spread evenly over 2 nodes"),
        (
            set_key("resources", value={"gpu": 4, "nodes": 2, "processes": 1}),
            "tiny.yaml: resources: processes: 1 can't be spread evenly over 2 nodes",
        ),
        (set_key("override", "schedule", "milestones", value=[2]), "schedule.milestones: expected epochs below"),
        (lambda content: content.pop("seeds"), "tiny.yaml: seeds: missing key"),
        (set_key("override", "schedule", "lr", value=float("nan")), "override.schedule.lr: expected a finite number"),
        (set_key("override", "schedule", "clip_norm", value=float("inf")), "schedule.clip_norm: expected a finite"),
        (set_key("override", "schedule", "epochs", value=2.0), "epochs: expected a positive integer, got 2.0"),
        (set_key("override", "schedule", "milestones", value=[1, 1]), "schedule.milestones: expected rising epochs"),
        (set_key("override", "rpn", "strides", value=[4, 8, 16]), "rpn.strides: expected 4, 8, 16, 32"),
        (set_key("seeds", value=[2**32]), "seeds.0: expected an integer from 0 to 4294967295"),
        (set_key("data", "generate", "clases", value=3), "data.generate.clases: unknown key"),
        (set_key("data", "generate", "train", value=-1), "data.generate.train:"),
    ],
)
def test_mistakes_in_a_suite_are_named(project, change, message):
    edit(project, change)
    with pytest.raises(ParamsError) as error:
        load_suite("tiny")
    assert message in str(error.value)
    assert "params/suites/tiny.yaml" in str(error.value)


def test_an_experiment_may_ask_for_more_and_its_digest_stays(project):
    before = run_of("tsd_pc").digest
    edit(project, lambda s: s.update(experiment_resources={"tsd_pc": {"gpu": 2, "device": "cpu"}}))
    wide, usual = run_of("tsd_pc"), run_of("baseline")
    assert (wide.processes, wide.resources["threads"], wide.on_gpu) == (2, 1, False)
    assert (usual.processes, usual.resources["gpu"]) == (1, 0)
    assert wide.digest == before


@pytest.mark.parametrize(("name", "wide"), [("coco", 1), ("openimages", 4)])
def test_the_papers_batch_is_on_one_node_and_what_needs_more_memory_on_two(root, name, wide):
    suite = load_suite(name, root=root)
    shapes = {}
    for experiment in suite.experiments:
        run = get_run(suite, experiment, 0, "0" * 12)
        pictures = run.settings["schedule"]["batch_size"] // run.processes
        shapes.setdefault((run.resources["gpu"], run.resources["nodes"], pictures), []).append(experiment)
        assert run.resources["runtime"] <= 1440
    assert shapes.keys() == {(8, 1, 4), (16, 2, 2)}
    senet = [name for name in suite.experiments if suite.settings[name]["backbone"].get("type") == "senet154"]
    assert shapes[16, 2, 2] == senet
    assert len(senet) == wide


def test_mistakes_in_experiments_are_named(project):
    edit(project, lambda e: e["experiments"]["tsd"]["head"].update(pc_cls=True), "params/experiments.yaml")
    edit(project, lambda s: s.update(experiments=["tsd"]))
    with pytest.raises(ParamsError, match=r"tsd: head.joint_sibling: the progressive constraint compares"):
        load_suite("tiny")
    edit(project, lambda e: e["experiments"]["baseline"].update(heads={}), "params/experiments.yaml")
    with pytest.raises(ParamsError, match=r"experiments.yaml: experiments.baseline.heads: unknown key"):
        load_suite("tiny")


@pytest.mark.parametrize("key", ["defaults", "recipes.paper"])
def test_only_an_experiment_extends_another(project, key):
    edit(project, set_key(*key.split("."), "extends", value="tsd"), "params/experiments.yaml")
    with pytest.raises(ParamsError, match=rf"experiments.yaml: {key}.extends: only an entry of experiments extends"):
        load_suite("tiny")


def add_experiments(**experiments):
    def change(content):
        content["experiments"] |= experiments

    return change


def test_an_experiment_starts_from_what_it_extends(project):
    change = add_experiments(
        parent={"extends": "tsd_pc", "head": {"margin_cls": 0.4}, "title": "p"},
        child={"extends": "parent", "head": {"gamma": 0.2}, "title": "c"},
    )
    edit(project, change, "params/experiments.yaml")
    edit(project, lambda s: s.update(experiments=["tsd_pc", "child"]))
    settings = load_suite("tiny").settings
    expected = settings["tsd_pc"]["head"] | {"margin_cls": 0.4, "gamma": 0.2}
    assert settings["child"] == settings["tsd_pc"] | {"head": expected, "title": "c"}


def test_what_extends_in_a_circle_or_nothing_is_named(project):
    edit(
        project,
        add_experiments(a={"extends": "b"}, b={"extends": "a"}, c={"extends": "tsd_cp"}),
        "params/experiments.yaml",
    )
    edit(project, lambda s: s.update(experiments=["a"]))
    with pytest.raises(ParamsError, match=r"experiments.a.extends: a circle: a → b → a"):
        load_suite("tiny")
    edit(project, lambda s: s.update(experiments=["c"]))
    with pytest.raises(ParamsError, match=r"experiments.c.extends: no experiment 'tsd_cp' \(did you mean 'tsd_pc'"):
        load_suite("tiny")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": {"type": "tsd"}, "disentangle": "head"}, "disentangle: expected none with a head of type tsd"),
        ({"detector": "mask_rcnn", "disentangle": "head"}, "disentangle: expected detector faster_rcnn, got mask_rcnn"),
        (
            {"backbone": {"type": "mobilenet_v2"}, "disentangle": "stride8"},
            "disentangle: expected a backbone of type resnet to be parted within, got mobilenet_v2",
        ),
        ({"disentangle": "head", "rpn_branch": "reg"}, "rpn_branch: only a detector with disentangle: stride8"),
        ({"cascade": {"stage_weights": [1, 1, 1]}}, "cascade: only the detectors cascade_rcnn"),
        ({"backbone": {"groups": 32}}, "backbone.groups: only a backbone of type resnext has it"),
        ({"backbone": {"type": "resnext"}}, "backbone.depth: expected 50, 101 or 152 for a resnext, got 18"),
        ({"backbone": {"dcn": True}}, "backbone.dcn: expected a backbone of bottleneck blocks"),
        ({"detector": "mask_rcnn", "test": {"flip": True}}, "test.flip: masks of several views can't be merged"),
    ],
)
def test_settings_that_contradict_each_other_are_named(project, settings, message):
    edit(project, add_experiments(odd=settings), "params/experiments.yaml")
    edit(project, lambda s: s.update(experiments=["odd"]))
    with pytest.raises(ParamsError) as error:
        load_suite("tiny")
    assert f"tiny.yaml: odd: {message}" in str(error.value)


def test_a_setting_that_an_experiment_does_not_have_does_not_enter_its_digest(project):
    edit(project, lambda s: s.update(experiments=["baseline_mobilenet_v2"]))
    backbone = load_suite("tiny").settings["baseline_mobilenet_v2"]["backbone"]
    assert backbone["type"] == "mobilenet_v2"
    assert not {"depth", "base_channels"} & set(backbone)


def test_known_data_that_is_not_here_can_be_planned_with_and_unknown_data_can_not(project):
    assert data_digest(load_suite("evidence-photos")) == ABSENT
    assert load_suite("evidence-photos").num_classes == 80
    edit(project, lambda s: s["data"].pop("classes"), "params/suites/evidence-photos.yaml")
    with pytest.raises(InputError, match=r"instances_train2017.json: no such file: .* put or link it there"):
        data_digest(load_suite("evidence-photos"))


def test_snakemake_is_told_a_suite_and_nothing_else():
    params.check_config({})
    params.check_config({"suite": "tiny"})
    with pytest.raises(InputError, match=r"--config siute: unknown key \(did you mean 'suite'\?\); known: suite"):
        params.check_config({"siute": "tiny"})


def test_an_unknown_suite_or_experiment_lists_the_known(project):
    with pytest.raises(ParamsError, match=r"no such suite; there are: .*tiny"):
        load_suite("tinny")
    with pytest.raises(ParamsError, match="no 'tsd'; there are: baseline, tsd_pc"):
        get_run(load_suite("tiny"), "tsd", 0, "x")


def test_broken_yaml_and_repeated_keys_are_named_with_their_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: [1\n")
    with pytest.raises(ParamsError, match=r"a.yaml: line 3 column 1"):
        read_yaml(path)
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ParamsError, match=r"a.yaml: line 3 column 1: key 'a' is given twice"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/{x}/train", "a path without braces, which Snakemake takes for a wildcard, got 'data/{x}/train'"),
        ("data/}", "a path without braces"),
        ("", "a path, of one character at least"),
        ("a\0b", "a path, of one character at least and without a zero byte, got 'a\\x00b'"),
        ("a\ud800", "a path in UTF-8, got 'a\\ud800'"),
        ("ä" * 128, "a path of at most 4095 bytes, and 255 of each name in it, got '\\xe4"),
        ("a/" * 2048, "a path of at most 4095 bytes"),
    ],
)
@pytest.mark.parametrize("key", ["folder", "train.images", "val.annotations"])
def test_a_path_that_cannot_be_or_that_snakemake_would_expand_is_refused(project, key, path, expected):
    def change(content):
        if key == "folder":
            content["data"]["folder"] = path
            return
        split, name = key.split(".")
        data = {of: {"annotations": "own.json", "images": "own"} for of in ("train", "val")}
        data[split][name] = path
        content["data"] = {"format": "coco", **data}

    edit(project, change)
    with pytest.raises(ParamsError, match=re.escape(f"tiny.yaml: data.{key}: expected {expected}")):
        load_suite("tiny")


def test_merge_keys_bring_in_what_is_not_written(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("c:\n  deep: [&b {<<: &a {x: 1, z: 3}, x: 2}]\n  d: {<<: *b, y: 3}\ne: {<<: [*a, *b], z: 4}\n")
    assert read_yaml(path) == {
        "c": {"deep": [{"x": 2, "z": 3}], "d": {"x": 2, "z": 3, "y": 3}},
        "e": {"x": 1, "z": 4},
    }
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2, y: 3}\n")
    with pytest.raises(ParamsError, match=r"a.yaml: line 2 column 19: key 'y' is given twice"):
        read_yaml(path)
    path.write_text("b: {<<: 3}\n")
    with pytest.raises(ParamsError, match=r"a.yaml: line 1 column 9: expected a mapping or list of mappings for merg"):
        read_yaml(path)


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_of_aliases_are_bounded(project, form):
    """Nine levels of nine stand for 387 million values, which a schema would take minutes to look through."""
    first = "x" if form == "[{}]" else "{x: 1}"
    lines = [f"a0: &a0 {form.format(', '.join([first] * 9))}"]
    lines += [f"a{n}: &a{n} {form.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 9)]
    path = project / "params/suites/tiny.yaml"
    path.write_text("\n".join(lines))
    start = time.monotonic()
    with pytest.raises(ParamsError, match=r"tiny.yaml: aliases repeat more than 10000 values; write out what is meant"):
        load_suite("tiny")
    assert time.monotonic() - start < 5
    path.write_text("a: &a [1, 2, 3]\nb: [" + "*a, " * 1000 + "]\n")
    assert len(read_yaml(path)["b"]) == 1000


def test_what_refers_to_itself_is_named_and_what_is_long_is_cut(project):
    path = project / "params/suites/tiny.yaml"
    whole = path.read_text()
    path.write_text("description: &a\n  x: *a\n")
    with pytest.raises(ParamsError, match=r"description.x: refers to itself"):
        load_suite("tiny")
    path.write_text(whole.replace("description: ", "description: [" + "1, " * 1000 + "1]\n#"))
    with pytest.raises(ParamsError) as error:
        load_suite("tiny")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["../suites/tiny", "a b", "", ".tiny"])
def test_a_suite_is_named_by_a_plain_word(project, name):
    with pytest.raises(ParamsError, match="expected a name of letters"):
        load_suite(name)


def test_nothing_heavy_is_imported_for_params():
    import subprocess
    import sys

    code = "import sys, tsd.engine.params, tsd.engine.identity, tsd.report.tables; print(' '.join(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "mmdet", "mmengine", "mlflow", "matplotlib"} & set(modules)
