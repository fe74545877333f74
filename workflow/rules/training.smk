# One training per experiment and seed. `checkpoints/` is no output: Snakemake deletes outputs before an attempt and
# after a failure, and the next attempt resumes from them.
RUN = f"{RESULTS}/runs/{{experiment}}/{{digest}}/seed{{seed}}"


rule init_tracking:
    output:
        f"{RESULTS}/tracking.json",
    log:
        f"logs/{SUITE.name}/init_tracking.log",
    localrule: True
    params:
        suite=SUITE.name,
    shell:
        "tsd mlflow init --suite {params.suite} --output {output} > {log} 2>&1"


rule train_detector:
    input:
        data=data_to_train,
        tracking=ancient(rules.init_tracking.output),
    output:
        f"{RUN}/checkpoint.pth",
    log:
        f"logs/{SUITE.name}/train/{{experiment}}-{{digest}}-seed{{seed}}.log",
    benchmark:
        f"benchmarks/.out/{SUITE.name}/train/{{experiment}}-{{digest}}-seed{{seed}}.tsv"
    retries: 2 if resource("gpu") else 0
    threads: resource("threads")
    resources:
        gpu=resource("gpu"),
        nodes=resource("nodes"),
        mem_mb=resource("mem_mb"),
        runtime=resource("runtime"),
    params:
        suite=SUITE.name,
    shell:
        "tsd train --suite {params.suite} --experiment {wildcards.experiment} --seed {wildcards.seed}"
        " --digest {wildcards.digest} 2>&1 | tee -a {log}"
