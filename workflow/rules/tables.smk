# Tables beside the paper's figures. The targets `tables`, `figures` and `report` take the metrics that exist; `all` and
# a single table train what they need.
TABLE_FILES = [
    f"{RESULTS}/tables/{name}.{kind}"
    for name in TABLES
    for kind in ("csv", "md", "tex")
]


# Parameters and multiply-adds need no training. What they follow from is a parameter: an edit counts them anew.
rule inspect_models:
    output:
        f"{RESULTS}/models.json",
    log:
        f"logs/{SUITE.name}/inspect_models.log",
    resources:
        mem_mb=growing(8000),
    params:
        suite=SUITE.name,
        models=SUITE.models_digest,
    shell:
        "tsd inspect --suite {params.suite} --output {output} > {log} 2>&1"


rule make_tables:
    input:
        metrics=wanted_metrics,
        draws=[] if SUITE.is_openimages else wanted_draws,
        models=models(),
        definition="params/tables.yaml",
        reported="params/reported.csv",
        external="params/external.csv",
    output:
        report(
            f"{RESULTS}/tables/tables.html",
            category="Tables",
            labels={"content": "all tables"},
            caption="../report/tables.rst",
        ),
        TABLE_FILES,
        f"{RESULTS}/metrics.json",
        f"{RESULTS}/training.csv",
    log:
        f"logs/{SUITE.name}/make_tables.log",
    localrule: True
    params:
        suite=SUITE.name,
        folder=f"{RESULTS}/tables",
        summary=RESULTS,
        models=lambda wildcards, input: (
            f"--models {input.models}" if input.models else ""
        ),
    # DVC wants the folder of metrics also where nothing was run.
    shell:
        "mkdir -p {params.summary}/metrics && tsd tables --suite {params.suite} --metrics {input.metrics}"
        " {params.models} --output {params.folder} --summary {params.summary} 2>&1 | tee {log}"


rule tables:
    input:
        rules.make_tables.output,


for _name in TABLES:

    rule:
        name:
            _name
        input:
            f"{RESULTS}/tables/{_name}.md",


# Verdicts on what the paper says, from the figures of the draws that are here.
rule judge_claims:
    input:
        metrics=wanted_metrics,
        draws=wanted_draws,
        claims="params/claims.yaml",
        reported="params/reported.csv",
    output:
        page=f"{RESULTS}/claims.md",
        data=report(
            f"{RESULTS}/claims.csv",
            category="Claims",
            labels={"content": "claims of the paper"},
            caption="../report/claims.rst",
        ),
    log:
        f"logs/{SUITE.name}/judge_claims.log",
    localrule: True
    params:
        suite=SUITE.name,
    shell:
        "tsd claims --suite {params.suite} --output {output.page} > {log} 2>&1"


# Open Images' metric knows one IoU threshold and no AP: nothing to judge.
CLAIMS = [] if SUITE.is_openimages else rules.judge_claims.output


rule claims:
    input:
        CLAIMS,


rule list_runs:
    input:
        metrics=wanted_metrics,
    output:
        report(
            f"{RESULTS}/report/runs.csv",
            category="Runs",
            labels={"content": "all runs"},
            caption="../report/runs.rst",
        ),
    log:
        f"logs/{SUITE.name}/list_runs.log",
    localrule: True
    params:
        suite=SUITE.name,
    shell:
        "tsd runs --suite {params.suite} --metrics {input.metrics} --output {output} > {log} 2>&1"


# One file for readers. `snakemake --report FILE` makes Snakemake's own, with the rules and their code.
rule make_report:
    input:
        rules.make_tables.output,
        rules.list_runs.output,
        CLAIMS,
        f"{RESULTS}/figures/figures.json",
        f"{RESULTS}/figures/pictures",
    output:
        f"{RESULTS}/report.html",
    log:
        f"logs/{SUITE.name}/make_report.log",
    localrule: True
    params:
        suite=SUITE.name,
    shell:
        "tsd report --suite {params.suite} --output {output} > {log} 2>&1"


rule report:
    input:
        rules.make_report.output,
