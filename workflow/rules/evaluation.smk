# Checkpoint → predictions → metrics.json, the source of truth for every table.
EVAL = f"{RUN}/eval/{{test_digest}}"
PREDICTING = 360  # minutes for one GPU, at most: Open Images' pictures, or all sizes and mirrored
EVALUATING = 8000  # MB
PUBLISH = "[ -z '{input}' ] || {{ cp {input} {output}.tmp && mv {output}.tmp {output}; }} 2> {log}"
# Paths come from params: quoted, so that they stay paths in a shell.
if SUITE.is_openimages:
    PROTOCOL = shlex.join(
        map(
            str,
            [
                "openimages",
                "--expand-predictions",
                *("--boxes", SUITE.challenge.boxes("val")),
                *("--image-labels", SUITE.challenge.labels("val")),
                *("--classes", SUITE.challenge.classes),
                *("--hierarchy", SUITE.challenge.hierarchy),
            ],
        )
    )
else:
    ALSO = [f"--{name}" for name in SUITE.evaluate]
    PROTOCOL = shlex.join(["coco", *ALSO, "--annotations", str(SUITE.split("val")[0])])


rule predict_detections:
    input:
        checkpoint=f"{RUN}/checkpoint.pth",
        data=data_to_predict,
    output:
        predictions=f"{EVAL}/predictions.{SUITE.predictions_suffix}",
        proposals=f"{EVAL}/proposals.npz",
    log:
        f"logs/{SUITE.name}/predict/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.log",
    benchmark:
        f"benchmarks/.out/{SUITE.name}/predict/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.tsv"
    threads: SUITE.share_of_gpu("threads")
    resources:
        gpu=min(1, resource("gpu")),
        mem_mb=growing(SUITE.share_of_gpu("mem_mb")),
        runtime=min(PREDICTING, resource("runtime")),
    params:
        suite=SUITE.name,
    shell:
        "tsd predict --suite {params.suite} --experiment {wildcards.experiment} --seed {wildcards.seed}"
        " --digest {wildcards.digest} --checkpoint {input.checkpoint} --output {output.predictions} > {log} 2>&1"


rule evaluate_detections:
    input:
        predictions=f"{EVAL}/predictions.{SUITE.predictions_suffix}",
    output:
        f"{EVAL}/metrics.json",
    log:
        f"logs/{SUITE.name}/evaluate/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.log",
    benchmark:
        f"benchmarks/.out/{SUITE.name}/evaluate/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.tsv"
    resources:
        mem_mb=growing(EVALUATING),
    params:
        protocol=PROTOCOL,
        run=RUN,
    shell:
        "tsd evaluate {params.protocol} --predictions {input.predictions}"
        " --output {output} --run-folder {params.run} 2>&1 | tee {log}"


# Small copies under names of their own: DVC versions their folder, so that a fresh clone has the figures of all runs
# without their checkpoints, and trains only what its params change.
# With `update` and without input they stay as they are: they outlive the runs.
rule publish_metrics:
    input:
        evaluated,
    output:
        update(
            f"{RESULTS}/metrics/{{experiment}}-seed{{seed}}-{{digest}}-{{test_digest}}.json"
        ),
    log:
        f"logs/{SUITE.name}/publish/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.log",
    localrule: True
    shell:
        PUBLISH


# What verdicts need of the predictions, as text: with it they can be made anew where the predictions are not.
if not SUITE.is_openimages:
    SPLITS = shlex.join(
        [
            *("--annotations", str(SUITE.split("val")[0])),
            *("--trained", str(SUITE.split("train")[0])),
        ]
    )

    rule draw_figures:
        input:
            predictions=f"{EVAL}/predictions.json",
        output:
            f"{EVAL}/draws.csv",
        log:
            f"logs/{SUITE.name}/draw/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.log",
        benchmark:
            f"benchmarks/.out/{SUITE.name}/draw/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.tsv"
        resources:
            mem_mb=growing(EVALUATING),
        params:
            splits=SPLITS,
        shell:
            "tsd evaluate draws {params.splits} --predictions {input.predictions} --output {output} > {log} 2>&1"

    rule publish_draws:
        input:
            drawn,
        output:
            update(
                f"{RESULTS}/metrics/{{experiment}}-seed{{seed}}-{{digest}}-{{test_digest}}{SUFFIX}"
            ),
        log:
            f"logs/{SUITE.name}/publish_draws/{{experiment}}-{{digest}}-seed{{seed}}-{{test_digest}}.log",
        localrule: True
        shell:
            PUBLISH
