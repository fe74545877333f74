# Params in, tables out. `snakemake --cores 2` runs the suite `demo`; `--config suite=NAME` another.
from snakemake.utils import min_version

min_version("9.19")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/tracking.smk"


rule all:
    default_target: True
    input:
        all_metrics,
        rules.tables.input,
        rules.figures.input,
        rules.report.input,
        rules.sync_tracking.output,


# A run that failed belongs into MLflow too, and so do those that ended before it.
onerror:
    shell(f"tsd mlflow sync --suite {SUITE.name} --pending || true")
