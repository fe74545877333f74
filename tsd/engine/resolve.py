"""The run that published metrics are of, at the settings that they were made with."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tsd
from tsd.engine import commits
from tsd.engine.identity import ABSENT, data_digest
from tsd.engine.params import Run, get_run, load_suite
from tsd.engine.published import Published
from tsd.errors import InputError, ParamsError


@dataclass(frozen=True)
class Resolved:
    """A run, and where its settings are from: a commit, or None for those of this checkout."""

    run: Run
    commit: str | None

    @property
    def origin(self) -> str:
        return f"those of commit {self.commit[:8]}" if self.commit else "those of this checkout"


@dataclass(frozen=True)
class _Attempt:
    """What a checkout's params make of a run: the run if its digests are those recorded, else why not."""

    run: Run | None
    problems: tuple[str, ...] = ()
    only_data: bool = False
    """Whether the settings are right, and only the data is other."""


@contextmanager
def resolved(published: Published) -> Iterator[Resolved]:
    """The run by today's params if they have the recorded digests, else by those of the recorded commit.

    The latter are in a temporary folder, which is there as long as the context.

    Raises:
        InputError: neither have; says what differs and what to do.
    """
    here = _attempt(published, Path("."))
    if here.run is not None:
        yield Resolved(here.run, None)
        return
    commit = _commit(published, here)
    with tempfile.TemporaryDirectory(prefix="tsd-params-") as folder:
        commits.export_settings(commit, Path(folder))
        there = _attempt(published, Path(folder), f"{commit[:8]}:")
        if there.run is None:
            raise InputError(_neither(published, here, there, commit))
        yield Resolved(there.run, commit)


def _attempt(published: Published, root: Path, commit: str = "") -> _Attempt:
    """By the params below ``root``, of a commit if it is named (``abcdef01:``, as git names a commit's files)."""
    facts, key = published.facts, published.key
    try:
        suite = load_suite(key.suite, root)
        run = get_run(suite, key.experiment, key.seed, facts["data_digest"])
    except ParamsError as error:
        return _Attempt(None, (str(error).replace(f"{root}/params/", f"{commit}params/"),))
    problems = [
        f"{commit}params/: the {what} settings of {key.experiment} have digest {digest}, recorded is {facts[recorded]}"
        for what, digest, recorded in (
            ("training's", run.digest, "digest"),
            ("test's", run.test_digest, "test_digest"),
        )
        if digest != facts[recorded]
    ]
    try:
        data = data_digest(suite)
    except InputError as error:
        return _Attempt(None, (*problems, f"the data is not here: {error}"), only_data=not problems)
    if data != facts["data_digest"]:
        found = "the data is not here" if data == ABSENT else f"{commit}params/: the data has digest {data}"
        return _Attempt(None, (*problems, f"{found}, recorded is {facts['data_digest']}"), only_data=not problems)
    return _Attempt(None, tuple(problems)) if problems else _Attempt(run)


def _commit(published: Published, here: _Attempt) -> str:
    """The recorded commit, which is in this clone and whose code gives today's results."""
    facts, said = published.facts, "; ".join(here.problems)
    if here.only_data and not _is_generated(published):
        raise InputError(f"{published.path}: {said}. {_how_to_get_data(published)}")
    commit: str | None = facts.get("git_commit")
    known = facts.get("revision", tsd.REVISION)
    if known == tsd.REVISION and commit and commits.has_commit(commit):
        known = commits.revision_at(commit)
    if known != tsd.REVISION:
        raise InputError(
            f"{published.path}: {said}. The code has changed so that results change: tsd.REVISION was "
            f"{known or 'none'} and is {tsd.REVISION}. {_in_worktree(published, commit)}"
        )
    if commit is None:
        raise InputError(
            f"{published.path}: {said}. It tells no git commit to take the former settings from: check out the one "
            "that it was made at, if you know it"
        )
    if not commits.has_commit(commit):
        raise InputError(
            f"{published.path}: {said}. Its git commit {commit} is not in this clone: `git fetch origin {commit}` "
            "(in a shallow clone `git fetch --unshallow`) gets it; then start this again"
        )
    return commit


def _neither(published: Published, here: _Attempt, there: _Attempt, commit: str) -> str:
    said = f"{published.path}: {'; '.join(here.problems)}. Nor do the settings of its commit fit: "
    said += "; ".join(there.problems)
    if there.only_data:
        return f"{said}. {_how_to_get_data(published)}"
    if published.facts.get("git_dirty"):
        return f"{said}. It was made with changes that were not committed, and nobody can take those from git"
    return f"{said}. {_in_worktree(published, commit)}"


def _is_generated(published: Published) -> bool:
    try:
        return load_suite(published.key.suite).data["format"] == "generated"
    except ParamsError:
        return True  # the commit may know


def _how_to_get_data(published: Published) -> str:
    suite = published.key.suite
    if _is_generated(published):
        return (
            f"Generated scenes follow from data.generate of params/suites/{suite}.yaml and the pin in data.dvc: give "
            "them the values that they had, or take another published run"
        )
    return (
        f"Put the data that it was made with where params/suites/{suite}.yaml says (`tsd data fetch --suite {suite}` "
        f"if it has a source), look at it with `tsd data verify --suite {suite}`, and start this again"
    )


def _in_worktree(published: Published, commit: str | None) -> str:
    if commit is None:
        return "It tells no git commit at which it could be made again"
    suite, place = published.key.suite, f"../tsd-{commit[:8]}"
    facts = published.facts
    name = "{experiment}-seed{seed}-{digest}-{test_digest}.json".format(**facts)
    return (
        f"Make it again at its own commit: `git worktree add {place} {commit} && cd {place} && make setup && "
        f".venv/bin/snakemake --cores 2 --config suite={suite} -- results/{suite}/metrics/{name}`, and compare "
        "predictions_sha256 of that file"
    )
