"""Locks and renaming where results are written, space, and which file systems are on the network."""

import csv
import fcntl
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tests.doctor.conftest import context
from tsd.doctor import places


def test_locks_work_here_and_nothing_is_left_behind(examined, project):
    before = sorted(project.iterdir())
    assert "a lock keeps a second process out" in examined("locks", context()).only("ok").finding
    assert sorted(project.iterdir()) == before
    Path("results").mkdir()
    assert str(project / "results") in examined("locks", context()).only("ok").finding
    assert list(Path("results").iterdir()) == []


def test_a_folder_that_cannot_be_written_to(examined):
    Path("results").symlink_to("/proc")  # where not even root makes a folder
    line = examined("locks", context()).only("error")
    assert line.finding.startswith("/proc (")
    assert "can't be written to: " in line.finding
    assert "`chmod u+w /proc`" in line.remedy


def test_results_that_are_no_folder(examined):
    Path("results").touch()
    line = examined("locks", context()).only("error")
    assert line.finding == "results is no folder"
    assert "mv results results.old" in line.remedy


def test_a_file_system_that_refuses_locks(examined, project, monkeypatch, mounted):
    def refuse(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    line = examined("locks", context()).only("error")
    assert "files can't be locked: Function not implemented" in line.finding
    assert "ln -s /path/to/results results" in line.remedy
    mounted(project, "lustre")
    line = examined("locks", context()).only("error")
    assert line.finding == f"{project} (lustre): files can't be locked: Function not implemented"
    assert "`-o flock`" in line.remedy


def test_locks_that_keep_nobody_out(examined, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)  # in this process; the second one's is real
    assert "does not keep a second process out" in examined("locks", context()).only("error").finding


def test_renaming_that_fails(examined, monkeypatch, project):
    def refuse(source, target):
        raise OSError(95, "Operation not supported")

    before = sorted(project.iterdir())
    monkeypatch.setattr(os, "replace", refuse)
    line = examined("locks", context()).only("error")
    assert "renamed over another: Operation not supported" in line.finding
    assert sorted(project.iterdir()) == before


@pytest.mark.parametrize("option", ["localflock", "local_lock=flock", "nolock"])
def test_locks_of_one_machine_only_are_a_warning(examined, project, mounted, option):
    mounted(project, "nfs", f"rw,{option},hard")
    line = examined("locks", context()).only("warning")
    assert option in line.finding


def test_the_file_system_of_a_path_is_the_innermost(tmp_path, mounted):
    with_space = tmp_path / "a folder"
    mounted(with_space, "nfs4")
    mounted(with_space / "scratch", "beegfs")
    assert places.mount_of(with_space / "x" / "y").kind == "nfs4"
    assert places.mount_of(with_space / "scratch" / "x").kind == "beegfs"
    assert places.mount_of(tmp_path / "a folder too").kind == "ext4"
    assert places.mount_of(with_space).is_network
    assert not places.mount_of(tmp_path).is_network


Usage = namedtuple("Usage", "total used free")


def free(monkeypatch, gigabytes):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gigabytes * 1e9))


def checkpoints(name):
    """GB: of each training the weights, and two states of the weights and as much momentum, four bytes a number."""
    with Path("params/networks.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["suite"] == name]
    assert len(rows) == len(context(name).suite.experiments)
    return 5 * 4e-3 * sum(float(row["params_m"]) for row in rows)


def forget_networks():
    path = Path("params/networks.csv")
    path.write_text(path.read_text().splitlines()[0] + "\n")


def test_space_for_the_archives_of_coco_and_as_much_again(examined, monkeypatch):
    needed = 2 * 20.405 + checkpoints("coco")
    free(monkeypatch, needed + 1)
    line = examined("space", context("coco")).only("ok")
    assert f"{needed + 1:.1f} GB free; {needed:.1f} GB to come by the plan of suite coco" in line.finding
    free(monkeypatch, needed - 1)
    line = examined("space", context("coco")).only("error")
    assert "mv results /large/disk/ && ln -s /large/disk/results results" in line.remedy


Files = namedtuple("Files", "f_files f_favail")


@pytest.mark.parametrize(("files", "lines"), [(Files(10**7, 123287), 0), (Files(0, 0), 0), (Files(10**7, 123286), 1)])
def test_room_for_files_counts_where_it_is_limited(examined, monkeypatch, files, lines):
    free(monkeypatch, 1000)
    monkeypatch.setattr(os, "statvfs", lambda path: files)
    found = [line for line in examined("space", context("coco")).lines if line.state == "error"]
    assert [line.finding for line in found] == ["data/: 123,287 files to come, and room for 123,286"] * lines


def test_what_is_there_needs_no_space(examined, monkeypatch):
    free(monkeypatch, checkpoints("coco") + 1)
    examined("space", context("coco")).only("error")
    for name in ("train", "val"):
        annotations, pictures = context("coco").suite.split(name)
        annotations.parent.mkdir(parents=True, exist_ok=True)
        annotations.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
        pictures.mkdir(parents=True)
    examined("space", context("coco")).only("ok")


def test_checkpoints_of_unknown_size(examined, monkeypatch):
    forget_networks()
    free(monkeypatch, 500)
    line = examined("space", context("evidence")).only("warning")
    assert "`tsd inspect --suite evidence --output results/evidence/models.json`" in line.remedy
    examined("space", context("tiny")).only("ok")  # a small network: there is room enough
    free(monkeypatch, 1)
    examined("space", context("tiny")).only("warning")


def test_folders_on_two_disks_have_a_line_each(examined, monkeypatch, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    Path("results").symlink_to(other)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1e9 if path == other else 60e9))
    forget_networks()
    answer = examined("space", context("coco"))
    assert [line.state for line in answer.lines] == ["ok", "warning"]
    assert "data/: 60.0 GB free; 40.8 GB to come" in answer.lines[0].finding
    assert "results/: 1.0 GB free; checkpoints" in answer.lines[1].finding
