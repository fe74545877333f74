# Raw data: made here, or fetched by `dvc pull`; verified once per content before anything is trained on it.
GENERATED = SUITE.data["format"] == "generated"
FOLDER = SUITE.data.get("folder")
FETCHED = SUITE.fetched
if SUITE.is_openimages:

    include: "sampling.smk"

elif FETCHED:
    DATA_FILES = [str(FETCHED.manifest)]
else:
    DATA_FILES = [str(SUITE.split(name)[0]) for name in ("train", "val")]
if GENERATED:
    DATA_FILES += [f"{FOLDER}/pictures.tar", f"{FOLDER}/manifest.json"]


# With `update` Snakemake removes nothing before it is known whose the files are: a folder of one's own is refused.
if GENERATED:

    rule generate_data:
        output:
            update(DATA_FILES),
        log:
            f"logs/{SUITE.name}/generate_data.log",
        benchmark:
            f"benchmarks/.out/{SUITE.name}/generate_data.tsv"
        threads: 2
        resources:
            mem_mb=growing(8000),
        params:
            suite=SUITE.name,
            spec=SUITE.data["generate"],
        shell:
            "tsd data generate --suite {params.suite} --workers {threads} --force > {log} 2>&1"


# The manifest lies beside the folder: Snakemake deletes outputs before an attempt, and the folder may be the user's own.
if FETCHED:

    rule fetch_archives:
        output:
            DATA_FILES,
        log:
            f"logs/{SUITE.name}/fetch_archives.log",
        localrule: True
        params:
            suite=SUITE.name,
        shell:
            "tsd data fetch --suite {params.suite} 2>&1 | tee {log}"


# A folder that is there is used as it is, and no rule makes it.
if TO_IMPORT:

    checkpoint import_data:
        output:
            DATA_FILES,
        log:
            f"logs/{SUITE.name}/import_data.log",
        benchmark:
            f"benchmarks/.out/{SUITE.name}/import_data.tsv"
        localrule: True
        threads: 2
        params:
            suite=SUITE.name,
        shell:
            "tsd data fetch --suite {params.suite} --workers {threads} 2>&1 | tee {log}"


rule verify_data:
    input:
        ancient(DATA_FILES),
    output:
        verified_path(SUITE, "{data_digest}"),
    log:
        f"logs/{SUITE.name}/verify_data-{{data_digest}}.log",
    resources:
        mem_mb=growing(8000),
    params:
        suite=SUITE.name,
    shell:
        "tsd data verify --suite {params.suite} --output {output} 2>&1 | tee {log}"


rule data:
    input:
        verified_data,
        DATA_FILES,
