# One training per experiment and seed. `checkpoints/` is no output: Snakemake deletes outputs before an attempt and
# after a failure, and the next attempt resumes from them.
RUN = f"{RESULTS}/runs/{{experiment}}/{{digest}}/seed{{seed}}"

# A scheduler's job holds one training and nothing else: it may be started again as a whole.
if workflow.remote_exec:
    os.environ.update(TSD_REQUEUE="1")


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
    # In a job this file is read anew, and each Snakemake there would try again itself: three attempts would be 27.
    retries: 2 if resource("gpu") and not workflow.remote_exec else 0
    threads: of_training("threads")
    resources:
        gpu=gpus_of_one_node,
        gres=gres,
        nodes=of_training("nodes"),
        mpi=starts_itself,
        tasks=tasks,
        tasks_per_gpu=0,
        cpus_per_task=cpus_per_task,
        mem_mb=of_training("mem_mb"),
        runtime=of_training("runtime"),
    params:
        suite=SUITE.name,
    shell:
        "tsd train --suite {params.suite} --experiment {wildcards.experiment} --seed {wildcards.seed}"
        " --digest {wildcards.digest} 2>&1 | tee -a {log}"
