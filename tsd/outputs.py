"""What a command may write over: the one place that decides it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tsd.errors import InputError

SOURCES = (
    *("params", "workflow", "tsd", "tests", "slurm", ".git", "Snakefile", "data.dvc", "dvc.yaml", "dvc.lock"),
    *("Makefile", "pyproject.toml", "requirements.lock", "environment.yml", "README.md", "CHANGELOG.md"),
    *("LICENSE", "CITATION.cff", ".gitignore", ".dvc", ".dvcignore", ".ci", "docs", "benchmarks"),
    *("data", "mlflow.db", "mlruns", "mlartifacts"),
)
"""Of the project, what people write or fetch, and MLflow's store."""


@dataclass(frozen=True)
class Writes:
    """What a verb writes."""

    own: tuple[str, ...] = ()
    """Names of the files in a run's folder that are this verb's to replace."""
    with_run_folder: bool = False
    """Whether only by ``--run-folder``: without it the result does not say of which run it is."""
    suffixes: tuple[str, ...] = ()
    """Of the files that it writes beside ``--output``, under the same name."""
    names: tuple[str, ...] = ()
    """Further files that it writes in the same folder."""
    among_sources: tuple[str, ...] = ()
    """Places in :data:`SOURCES` that are its to write."""
    begins: str = ""
    """How a file beside ``--output`` begins that this verb has written: another is not replaced."""

    def files(self, output: Path) -> list[Path]:
        """All that ``--output`` makes it write."""
        beside = [output.with_suffix(suffix) for suffix in self.suffixes]
        return [output, *beside, *(output.with_name(name) for name in self.names)]


def check_output(output: Path, writes: Writes, inputs: Iterable[Path] = (), run_folder: Path | None = None) -> None:
    """Refuse to write over what people made, or what another command made for others to read.

    Args:
        output: as it was given; a file or a folder.
        writes: what the verb writes at and beside it.
        inputs: files and folders that the command reads.
        run_folder: of the run whose result the output is; None if it is of no run.

    Raises:
        InputError: the output, or a file written beside it, is in the project's sources, is an input or in one, is a
            file of a run that is not the verb's to replace, or published metrics.
    """
    root = Path.cwd()
    given = list(inputs)
    for path in writes.files(output):
        real = path.resolve()
        for name in SOURCES:
            may = any(real.is_relative_to(root / place) for place in writes.among_sources)
            if real.is_relative_to(root / name) and not may:
                raise InputError(f"{path}: is in {name} of the project, which is not to be written over")
        try:
            is_file = path.exists() and not path.is_dir()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; expected a place that can be written to") from None
        if not is_file:
            continue
        for source in given:
            if source.is_dir() and real.is_relative_to(source.resolve()):
                raise InputError(f"{path}: is in {source}, which this command reads; expected another place to write")
            if source.exists() and os.path.samefile(path, source):
                raise InputError(f"{path}: is what this command reads; expected another place to write")
        if path != output and writes.begins and not _begins(path, writes.begins):
            raise InputError(f"{path}: would be replaced, and is none that this command wrote; move it or name another")
        _check_results(path, output, writes, run_folder)


def _check_results(path: Path, output: Path, writes: Writes, run_folder: Path | None) -> None:
    parts = path.resolve().parts
    folders = [Path(*parts[: index + 6]) for index, name in enumerate(parts[:-6]) if _is_run(parts[index : index + 6])]
    if folders:
        whose = folders[-1]
        of_whom = run_folder.resolve() if run_folder else None if writes.with_run_folder else whose
        if output.name not in writes.own or of_whom != whose:
            raise InputError(f"{path}: is a file of the run {whose.name} in {whose.parent}; expected another place")
    is_published = len(parts) > 4 and parts[-4] == "results" and parts[-2] == "metrics"
    if is_published and not any(path.name.endswith(f".{name}") for name in writes.own if name != "metrics.json"):
        raise InputError(f"{path}: is published metrics, which tables are made of; expected another place to write")


def _begins(path: Path, text: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(text)) == text.encode()


def _is_run(parts: tuple[str, ...]) -> bool:
    """Whether a path's parts are ``results/<suite>/runs/<experiment>/<digest>/seed<k>``."""
    return parts[0] == "results" and parts[2] == "runs" and parts[5].startswith("seed")
