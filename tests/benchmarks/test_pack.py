"""Which wheels are packed for a machine without a network, and how they are had."""

import hashlib
import io
import subprocess
import tarfile
import zipfile

import pack
import pytest

from tests.conftest import ROOT

LOCK = """\
alpha==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
beta-two==2.1 ; python_full_version < '3.12' \\
    --hash=sha256:ba
beta-two==2.2 ; python_full_version >= '3.12' \\
    --hash=sha256:bb
gamma==3.0 ; sys_platform == 'win32' \\
    --hash=sha256:ca
delta==4.0 \\
    --hash=sha256:da
opencv-python==5.0 \\
    --hash=sha256:ea
"""

REQUIREMENTS = {
    "alpha": ["Beta_Two>=2", "numpy", "opencv-python", "gamma; sys_platform == 'win32'", "delta; extra == 'all'"],
    "beta-two": ["alpha"],
    "delta": [],
}


def requirements(pin):
    return REQUIREMENTS[pin.name]


def test_the_lock_is_read_for_the_machine_that_it_is_packed_for():
    pins = pack.read_lock(LOCK)
    assert {name: pin.version for name, pin in pins.items()} == {
        "alpha": "1.0",
        "beta-two": "2.2",
        "delta": "4.0",
        "opencv-python": "5.0",
    }
    assert pins["alpha"].lines == "alpha==1.0 --hash=sha256:aa --hash=sha256:ab\n"


def test_what_is_needed_is_packed_but_for_what_is_there():
    pins = pack.read_lock(LOCK)
    present = pack.read_present("# what is there\nNumPy==2.5.2\nopencv-python-headless  # the same modules\n")
    assert [pin.name for pin in pack.choose(["alpha"], pins, present, requirements)] == ["alpha", "beta-two"]
    assert [pin.name for pin in pack.choose(["alpha"], pins, present | {"beta-two"}, requirements)] == ["alpha"]
    assert pack.choose(["alpha"], pins, present | {"alpha"}, requirements) == []


def test_what_neither_the_lock_nor_the_machine_has_is_named():
    with pytest.raises(pack.PackError, match="numpy, which alpha needs, is neither in the lock nor in the list"):
        pack.choose(["alpha"], pack.read_lock(LOCK), {"opencv-python"}, requirements)


def test_the_projects_own_lock_and_dependencies_are_understood():
    pins = pack.read_lock((ROOT / "requirements.lock").read_text())
    roots = pack.project_roots((ROOT / "pyproject.toml").read_text())
    present = pack.read_present((ROOT / "benchmarks/present.txt").read_text())
    assert {"onedl-mmcv", "onedl-mmdetection", "onedl-mmengine"} <= set(roots) - present
    assert not {"mlflow", "snakemake", "dvc"} & set(roots)
    assert {"torch", "torchvision", "triton", "numpy"} <= present
    assert set(roots) <= set(pins)
    assert all(pins[name].hashes for name in roots)


def test_too_much_is_refused_with_the_largest_named(tmp_path):
    for name, size in (("a-1-py3-none-any.whl", 3_000_000), ("b-1-py3-none-any.whl", 1_000_000)):
        (tmp_path / name).write_bytes(bytes(size))
    wheels = sorted(tmp_path.iterdir())
    assert pack.check_size(wheels) == 4.0
    with pytest.raises(pack.PackError, match=r"4\.0 MB together, more than 3 MB; the largest are a-1.*\(3\.0 MB\)"):
        pack.check_size(wheels, 3)


METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: numpy\n"

BACKEND = '''
"""A build backend that needs nothing."""
import zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "sourced-1.0-{tag}.whl"
    with zipfile.ZipFile(f"{{folder}}/{{name}}", "w") as wheel:
        wheel.writestr("sourced.py", "")
        wheel.writestr("sourced-1.0.dist-info/METADATA", {metadata!r})
        wheel.writestr("sourced-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: {tag}\\n")
        wheel.writestr("sourced-1.0.dist-info/RECORD", "")
    return name
'''


def write_sdist(folder, tag):
    """A source distribution whose backend is its own; returns its pin."""
    files = {
        "PKG-INFO": METADATA.format(name="sourced"),
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(tag=tag, metadata=METADATA.format(name="sourced")),
    }
    path = folder / "sourced-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"sourced-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return pack.Pin("sourced", "1.0", (f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",))


def write_wheel(folder, name, tag):
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", METADATA.format(name=name))
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return pack.Pin(name, "1.0", (f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes packages from, and from nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def fetcher(tmp_path):
    target = tmp_path / "wheels"
    target.mkdir()
    return pack.Fetcher(target)


def test_a_wheel_for_the_machine_is_taken_whatever_python_runs_here(index, fetcher):
    write_wheel(index, "compiled", "cp311-cp311-manylinux_2_17_x86_64")
    pin = write_wheel(index, "compiled", "cp312-cp312-manylinux_2_28_x86_64")
    assert fetcher(pin) == ["numpy"]
    assert [path.name for path in fetcher.folder.iterdir()] == ["compiled-1.0-cp312-cp312-manylinux_2_28_x86_64.whl"]


def test_what_comes_as_source_only_is_built(index, fetcher):
    assert fetcher(write_sdist(index, "py3-none-any")) == ["numpy"]
    assert [path.name for path in fetcher.folder.iterdir()] == ["sourced-1.0-py3-none-any.whl"]


def test_what_was_built_for_this_machine_only_is_refused(index, fetcher):
    pin = write_sdist(index, "cp311-cp311-linux_x86_64")
    with pytest.raises(pack.PackError, match=r"sourced-1\.0.*not pure|no wheel"):
        fetcher(pin)


def test_another_file_than_the_locks_is_refused(index, fetcher):
    write_wheel(index, "changed", "py3-none-any")
    with pytest.raises(pack.PackError, match=r"changed 1\.0: no wheel: .*HASHES"):
        fetcher(pack.Pin("changed", "1.0", ("sha256:" + "0" * 64,)))


def test_the_installing_script_is_bash(tmp_path):
    path = tmp_path / "install.sh"
    path.write_text(pack.INSTALL.format(folder="wheels"))
    subprocess.run(["bash", "-n", path], check=True)
