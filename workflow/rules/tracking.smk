# MLflow shows what the files say. Where the trainings could not tell it themselves (jobs of a cluster, a server that was
# away), it is brought up to date here, by one process on the machine that Snakemake runs on. What fails is written into
# the output and does not fail the workflow; nothing but `all` depends on it.


rule sync_tracking:
    input:
        all_metrics,
        rules.tables.input,
    output:
        f"{RESULTS}/mlflow.json",
    log:
        f"logs/{SUITE.name}/sync_tracking.log",
    localrule: True
    params:
        suite=SUITE.name,
        # What is still lacking, because the server was away, is tried again by the next Snakemake.
        behind=behind_in_mlflow(),
    shell:
        "tsd mlflow sync --suite {params.suite} --pending --output {output} 2>&1 | tee {log}"
