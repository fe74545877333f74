# Params are read and validated here, once; everything below only names files.
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir)))

from snakemake.exceptions import WorkflowError

from tsd.engine.budget import format_budget
from tsd.engine.identity import ABSENT, absence, data_digest
from tsd.engine.params import (
    check_config,
    get_run,
    get_runs,
    load_suite,
    plan_path,
    verified_path,
)
from tsd.errors import InputError
from tsd.evaluation.draws import SUFFIX
from tsd.report.tables import chosen_tables, experiments_of, load_figures, needs_models
from tsd.tracking.follow import pending_since

try:
    check_config(config)
    SUITE = load_suite(str(config.get("suite", "demo")))
    DATA_DIGEST = data_digest(SUITE)
    TABLES = chosen_tables(Path("params"), SUITE.tables)
except InputError as error:
    raise WorkflowError(str(error))

RUNS = get_runs(SUITE, DATA_DIGEST)
RESULTS = f"results/{SUITE.name}"
# Data that is imported is known by its digest once it is there. Until then no run has a name: a checkpoint makes it.
TO_IMPORT = "import" in SUITE.data and DATA_DIGEST == ABSENT
ONLY_EXISTING = {"tables", "figures", "claims", "report"}

# Data of the user's own that is not here: one sentence, where Snakemake would name a file of a rule.
if DATA_DIGEST == ABSENT and not TO_IMPORT and not ONLY_EXISTING & set(sys.argv):
    raise WorkflowError(absence(SUITE))


# A dry run begins with what the suite will cost. Snakemake tells a Snakefile nothing of it but its command line.
if any(re.fullmatch("-[a-z]*n[a-z]*|--dry-?run", word) for word in sys.argv):
    try:
        plan = format_budget(SUITE, RUNS, TABLES | load_figures(Path("params")))
    except InputError as error:
        raise WorkflowError(str(error))
    print(plan, end="\n\n", file=sys.stderr)


wildcard_constraints:
    experiment="[a-z][a-z0-9_]*",
    data_digest="[0-9a-f]{12}",
    digest="[0-9a-f]{12}",
    test_digest="[0-9a-f]{12}",
    seed="[0-9]+",


@cache
def runs_of_imported_data():
    """The suite's runs, once its data is there."""
    return get_runs(SUITE, data_digest(SUITE))


def current_runs():
    """The suite's runs. Snakemake asks again after the checkpoint where it has to come first."""
    if not TO_IMPORT:
        return RUNS
    checkpoints.import_data.get()
    return runs_of_imported_data()


def metrics_of(experiments):
    """Metrics of all seeds of those experiments that the suite names."""
    return [
        str(run.metrics_file) for run in current_runs() if run.experiment in experiments
    ]


def all_metrics(wildcards):
    """Metrics of all of the suite's runs."""
    return metrics_of(SUITE.experiments)


def wanted_metrics(wildcards):
    """All metrics of the suite; for other targets those that exist, and all that a table takes which is named."""
    targets = set(workflow.dag_settings.targets) or {"all"}
    if "all" in targets:
        return all_metrics(wildcards)
    named = targets & set(TABLES)
    wanted = {name for table in named for name in experiments_of(TABLES[table])}
    return [
        str(run.metrics_file)
        for run in (current_runs() if named else RUNS)
        if run.experiment in wanted or run.metrics_file.exists()
    ]


def wanted_draws(wildcards):
    """Draws of the runs whose metrics are wanted, but of those whose metrics alone are here."""
    wanted = set(wanted_metrics(wildcards))
    return [
        str(run.draws_file)
        for run in (current_runs() if wanted else [])
        if str(run.metrics_file) in wanted
        and (
            run.draws_file.exists()
            or run.predictions.exists()
            or not run.metrics_file.exists()
        )
    ]


def evaluated(wildcards):
    """Metrics in the run's folder; nothing if its checkpoint is not here but its published metrics are.

    In a fresh clone with pulled results a shared job (verifying the data, say) would otherwise count as an update of
    every run's inputs, and all would be trained again.
    """
    return _unless_only_published(wildcards, "metrics.json", ".json")


def drawn(wildcards):
    """The same for the figures of bootstrap draws."""
    return _unless_only_published(wildcards, "draws.csv", SUFFIX)


def _unless_only_published(wildcards, name, suffix):
    run = run_of(wildcards)
    published = f"{wildcards.experiment}-seed{wildcards.seed}-{wildcards.digest}-{wildcards.test_digest}{suffix}"
    if (
        Path(RESULTS, "metrics", published).exists()
        and not (run / "checkpoint.pth").exists()
    ):
        return []
    return str(run / "eval" / wildcards.test_digest / name)


def run_of(wildcards):
    """The run's folder."""
    return Path(
        RESULTS, "runs", wildcards.experiment, wildcards.digest, f"seed{wildcards.seed}"
    )


def verified_data(wildcards=None):
    """The file that says that the data of this digest is whole."""
    return str(verified_path(SUITE, current_runs()[0].data_digest))


def data_to_train(wildcards):
    """The verified data. For a trained run it is ancient: it must not be trained again when data is added.

    For a run that has to be trained it must not be: Snakemake looks at no job that stands behind one that has to run
    and a file that is ancient and exists, not even for outputs that are missing.
    """
    trained = (run_of(wildcards) / "checkpoint.pth").exists()
    return ancient(verified_data()) if trained else verified_data()


def data_to_predict(wildcards):
    """The same for predictions."""
    folder = run_of(wildcards) / "eval" / wildcards.test_digest
    predicted = (folder / f"predictions.{SUITE.predictions_suffix}").exists()
    return ancient(verified_data()) if predicted else verified_data()


def behind_in_mlflow():
    """Runs that MLflow lacks when Snakemake is started, and since when: a sync that failed changes that."""
    since = {run.folder: pending_since(run.folder) for run in RUNS}
    return [f"{folder} {time}" for folder, time in since.items() if time is not None]


def models():
    """The file of parameter counts, if a table shows them."""
    return [f"{RESULTS}/models.json"] if needs_models(TABLES) else []


def resource(name):
    """What the suite asks for one training, unless an experiment asks otherwise."""
    return SUITE.resources[name]


def growing(mem_mb):
    """Memory of a job, more with each attempt: a cluster ends a job that takes more than it asked for."""
    return lambda wildcards, attempt: mem_mb * attempt


def asked(wildcards):
    """What trainings of the experiment ask for."""
    return SUITE.resources_of(wildcards.experiment)


def of_training(name):
    """A resource of the experiment's trainings, for Snakemake."""
    return lambda wildcards: asked(wildcards)[name]


# A training with GPUs starts its own processes by srun, which the executor calls `mpi`: a step around it would keep Slurm's
# signals from it, and have one node only. Slurm wants at least two tasks for that: on one node each has half of the CPUs.
def starts_itself(wildcards):
    return "srun" if asked(wildcards)["gpu"] else None


def tasks(wildcards):
    return max(2, asked(wildcards)["nodes"]) if asked(wildcards)["gpu"] else None


def cpus_per_task(wildcards):
    """Of a node's CPUs half, rounded up, where two tasks share it."""
    threads, nodes = asked(wildcards)["threads"], asked(wildcards)["nodes"]
    return (
        (threads if nodes > 1 else -(-threads // 2))
        if asked(wildcards)["gpu"]
        else None
    )


def gpus_of_one_node(wildcards):
    """For a training on one node `--gpus`, which also counts for a local `--resources gpu=N`."""
    return asked(wildcards)["gpu"] if asked(wildcards)["nodes"] == 1 else None


def gres(wildcards):
    """For several nodes so many GPUs on each: of `--gpus` Slurm gives one node more than another."""
    gpus, nodes = asked(wildcards)["gpu"], asked(wildcards)["nodes"]
    return f"gpu:{gpus // nodes}" if nodes > 1 and gpus else None
