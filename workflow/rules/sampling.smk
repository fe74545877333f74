# Open Images: files → what the runs will draw → those pictures → columnar stores. Pictures are counted in pictures.json;
# their record pictures.parquet is no output: Snakemake deletes outputs before an attempt, and the next one goes on with it.
CHALLENGE = SUITE.challenge
CHALLENGE_FILES = [str(path) for path in CHALLENGE.files]
PLANS = (
    [str(plan_path(SUITE, seed)) for seed in SUITE.seeds]
    if SUITE.data.get("pictures", "planned") == "planned"
    else []
)
STORES = [f"{CHALLENGE.store(split)}/store.json" for split in ("train", "val")]
DATA_FILES = [*CHALLENGE_FILES, *PLANS, *STORES, f"{FOLDER}/pictures.json"]


rule fetch_annotations:
    output:
        CHALLENGE_FILES,
    log:
        f"logs/{SUITE.name}/fetch_annotations.log",
    localrule: True
    threads: 2
    params:
        suite=SUITE.name,
    shell:
        "tsd data fetch --suite {params.suite} --what annotations --workers {threads} 2>&1 | tee {log}"


rule plan_sampling:
    input:
        ancient(CHALLENGE_FILES),
    output:
        f"{RESULTS}/sampling/{SUITE.sampling_digest}-seed{{seed}}.txt",
        f"{RESULTS}/sampling/{SUITE.sampling_digest}-seed{{seed}}.json",
        report(
            f"{RESULTS}/sampling/{SUITE.sampling_digest}-seed{{seed}}.png",
            category="Data",
            labels={"content": "class-aware sampling, seed {seed}"},
            caption="../report/sampling.rst",
        ),
    log:
        f"logs/{SUITE.name}/plan_sampling-seed{{seed}}.log",
    benchmark:
        f"benchmarks/.out/{SUITE.name}/plan_sampling-seed{{seed}}.tsv"
    localrule: True
    params:
        suite=SUITE.name,
    shell:
        "tsd sample --suite {params.suite} --seed {wildcards.seed} 2>&1 | tee {log}"


rule fetch_pictures:
    input:
        ancient(CHALLENGE_FILES),
        PLANS,
    output:
        f"{FOLDER}/pictures.json",
    log:
        f"logs/{SUITE.name}/fetch_pictures.log",
    localrule: True
    params:
        suite=SUITE.name,
    shell:
        "tsd data fetch --suite {params.suite} --what pictures 2>&1 | tee {log}"


rule build_stores:
    input:
        ancient(CHALLENGE_FILES),
        f"{FOLDER}/pictures.json",
    output:
        STORES,
    log:
        f"logs/{SUITE.name}/build_stores.log",
    benchmark:
        f"benchmarks/.out/{SUITE.name}/build_stores.tsv"
    localrule: True
    params:
        suite=SUITE.name,
    shell:
        "tsd data openimages --suite {params.suite} 2>&1 | tee {log}"
