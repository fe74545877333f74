# Figures of the runs that the metrics belong to.
rule make_figures:
    input:
        metrics=wanted_metrics,
    output:
        report(
            directory(f"{RESULTS}/figures/pictures"),
            patterns=["{figure}.png"],
            category="Figures",
            labels={"figure": "{figure}"},
            caption="../report/figures.rst",
        ),
        f"{RESULTS}/figures/figures.json",
    log:
        f"logs/{SUITE.name}/make_figures.log",
    resources:
        mem_mb=growing(8000),
    params:
        suite=SUITE.name,
        folder=f"{RESULTS}/figures",
    shell:
        "tsd figures --suite {params.suite} --metrics {input.metrics} --output {params.folder} > {log} 2>&1"


rule figures:
    input:
        rules.make_figures.output,
