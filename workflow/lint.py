"""Let through only what snakemake's lint has to say beyond this project's stated exceptions.

One environment serves every rule (made by `make setup` from one lock), so no rule names a conda environment or
container; helpers live in workflow/rules/common.smk.
"""

import re
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
    """Exit status 1 if a finding is not among the exceptions, or the workflow can't be read."""
    lines = [line.strip() for line in sys.stdin]
    findings = [line for line in lines if line.startswith("* ")]
    new = [line for line in findings if not any(known in line for known in EXCEPTIONS)]
    new += [line for line in lines if re.match(r"\w*(Error|Exception)\b", line)]
    for line in new:
        print(line)
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
