"""Let through only what snakemake's lint has to say beyond this project's stated exceptions.

One environment serves every rule (made by `make setup` from one lock), so no rule names a conda environment or
container; helpers live in workflow/rules/common.smk.
"""

import sys

EXCEPTIONS = (
    "No log directive defined",  # targets without a command
    "Specify a conda environment or container",
    "Mixed rules and functions in same snakefile",
    "is a prefix of input or output file",  # verbs take a run's or a table's folder
    "Absolute path",
    "Path composition with '+'",
)


def main() -> int:
    """Exit status 1 if a finding is not among the exceptions."""
    findings = [line.strip() for line in sys.stdin if line.strip().startswith("* ")]
    new = [line for line in findings if not any(known in line for known in EXCEPTIONS)]
    for line in new:
        print(line)
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
