"""One check at a time, as ``tsd doctor`` runs it, in a copy of the project."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tsd.doctor import examine as module
from tsd.doctor.checks import Check, Context
from tsd.doctor.processes import Processes
from tsd.engine.params import load_suite


def context(
    suite: str = "tiny", *, quick: bool = False, here: Processes | None = None, **resources: int | str
) -> Context:
    """What checks are told of a suite, one process on a machine called ``here`` unless said otherwise."""
    loaded = load_suite(suite)
    loaded = replace(loaded, resources=loaded.resources | resources)
    return Context(loaded, quick, here or Processes(host="here"))


@dataclass(frozen=True)
class Answer:
    """Exit status, and the lines of one check."""

    status: int
    lines: list[Check]

    def only(self, state: str) -> Check:
        """The one line, of that state, which says what to type unless all is well; exit status 1 is for errors."""
        assert len(self.lines) == 1, self.lines
        line = self.lines[0]
        assert line.state == state, line
        assert self.status == int(state == "error")
        assert bool(line.remedy) == (state != "ok"), line
        if line.remedy:
            assert "`" in line.remedy
            assert line.remedy.endswith((".", ")"))
        return line


@pytest.fixture
def examined(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[[str, Context], Answer]:
    """Run the check of a name alone, by the command's own function."""
    real = module.entries

    def run(name: str, about: Context) -> Answer:
        monkeypatch.setattr(module, "entries", lambda meeting: [one for one in real(meeting) if one.name == name])
        monkeypatch.setattr(module, "who", lambda environment: about.here)
        capsys.readouterr()
        status = module.examine(about.suite, quick=about.quick, as_json=True)
        found = json.loads(capsys.readouterr().out)
        return Answer(status, [Check(**{key: line[key] for key in Check.__dataclass_fields__}) for line in found])

    return run


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script on PATH, before all others, under the name of a program."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say that a folder is a file system of that kind."""
    from tsd.doctor import places

    table = tmp_path / "mounts"
    table.write_text("/dev/vda / ext4 rw 0 0\n")
    monkeypatch.setattr(places, "MOUNTS", table)

    def mount(place: Path, kind: str, options: str = "rw") -> None:
        escaped = str(place.resolve()).replace(" ", "\\040")
        with table.open("a") as file:
            file.write(f"server:/export {escaped} {kind} {options} 0 0\n")

    return mount
