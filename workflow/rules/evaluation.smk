# Checkpoint → predictions → metrics.json, the source of truth for every table.
EVAL = f"{RUN}/eval/{{test_digest}}"


rule predict_detections:
    input:
        checkpoint=f"{RUN}/checkpoint.pth",
        data=ancient(VERIFIED),
    output:
        f"{EVAL}/predictions.json",
        f"{EVAL}/proposals.npz",
    log:
        f"logs/{SUITE.name}/predict/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.log",
    benchmark:
        f"benchmarks/.out/{SUITE.name}/predict/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.tsv"
    threads: resource("threads")
    resources:
        gpu=resource("gpu"),
        mem_mb=resource("mem_mb"),
        runtime=resource("runtime"),
    params:
        suite=SUITE.name,
    shell:
        "tsd predict --suite {params.suite} --experiment {wildcards.experiment} --seed {wildcards.seed}"
        " --digest {wildcards.digest} --checkpoint {input.checkpoint} --output {output[0]} > {log} 2>&1"


rule evaluate_detections:
    input:
        predictions=f"{EVAL}/predictions.json",
    output:
        f"{EVAL}/metrics.json",
    log:
        f"logs/{SUITE.name}/evaluate/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.log",
    benchmark:
        f"benchmarks/.out/{SUITE.name}/evaluate/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.tsv"
    localrule: True
    params:
        annotations=str(SUITE.split("val")[0]),
        run=RUN,
    shell:
        "tsd evaluate coco --annotations {params.annotations} --predictions {input.predictions}"
        " --output {output} --run-folder {params.run} 2>&1 | tee {log}"
