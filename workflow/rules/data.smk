# Raw data: made here, or fetched by `dvc pull`; verified once per content before anything is trained on it.
VERIFIED = f"{RESULTS}/data/{DATA_DIGEST}.json"

if SUITE.data["format"] == "generated":
    FOLDER = SUITE.data["folder"]

    rule generate_data:
        output:
            f"{FOLDER}/annotations/instances_train.json",
            f"{FOLDER}/annotations/instances_val.json",
            f"{FOLDER}/pictures.tar",
            f"{FOLDER}/manifest.json",
        params:
            suite=SUITE.name,
            spec=SUITE.data["generate"],
        log:
            f"logs/{SUITE.name}/generate_data.log",
        benchmark:
            f"benchmarks/.out/{SUITE.name}/generate_data.tsv"
        threads: 2
        localrule: True
        shell:
            "tsd data generate --suite {params.suite} --workers {threads} --force > {log} 2>&1"

    DATA_FILES = rules.generate_data.output
else:
    DATA_FILES = [str(SUITE.split("train")[0]), str(SUITE.split("val")[0])]


rule verify_data:
    input:
        ancient(DATA_FILES),
    output:
        VERIFIED,
    params:
        suite=SUITE.name,
    log:
        f"logs/{SUITE.name}/verify_data-{DATA_DIGEST}.log",
    localrule: True
    shell:
        "tsd data verify --suite {params.suite} --output {output} 2>&1 | tee {log}"


rule data:
    input:
        VERIFIED,
