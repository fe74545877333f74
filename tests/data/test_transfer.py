"""Files over HTTP, from servers that misbehave in the ways that real ones do."""

import hashlib
import threading
import time
from typing import ClassVar

import pytest

from tsd.data.pace import Pace
from tsd.data.serve import Handler, served
from tsd.data.transfer import CHUNK, Policy, TransferError, download, get

CONTENT = bytes(range(256)) * 5000  # 1.28 MB, more than one piece
HALF = len(CONTENT) // 2 // CHUNK * CHUNK  # what is kept of a transfer that is cut in the middle
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = Policy(attempts=4, wait=0.01, longest_wait=0.05, timeout=0.5)
PACED = Policy(attempts=2, wait=0.01, timeout=5.0, pace=Pace(bytes=1000, seconds=0.5))


class Faulty(Handler):
    """Plays a scripted fault for each request, then serves as usual."""

    script: ClassVar[list[str]] = []
    seen: ClassVar[list[tuple[str, str]]] = []
    lock = threading.Lock()

    def do_GET(self):
        with self.lock:
            fault = self.script.pop(0) if self.script else ""
            self.seen.append((fault, self.headers.get("Range", "")))
        if fault.isdigit():
            self.send_response(int(fault))
            if fault in ("429", "503"):
                self.send_header("Retry-After", "0")
            body = b"<Error><Code>Fault</Code></Error>"
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif fault == "hang":
            time.sleep(1.0)
            self.close_connection = True
        elif fault in ("cut", "cut without a tag"):
            path = self.find()
            size = path.stat().st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            if fault == "cut":
                self.send_header("ETag", f'"{size:x}-{path.stat().st_mtime_ns:x}"')
            self.end_headers()
            self.wfile.write(path.read_bytes()[: size // 2])
            self.wfile.flush()
            self.close_connection = True
        elif fault.startswith("trickles"):
            self.trickle(fault)
        elif fault == "sends without end":
            self.send_response(200)
            self.end_headers()
            while True:  # until the other end closes
                self.wfile.write(bytes(CHUNK))
        elif fault == "compresses":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault.startswith("sends on to "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("sends on to "))
            self.end_headers()
            if fault.endswith("?endless"):
                while True:
                    self.wfile.write(bytes(CHUNK))
        elif fault == "ignores ranges":
            del self.headers["Range"]
            super().do_GET()
        else:
            super().do_GET()

    def trickle(self, fault):
        """A byte at a time, none of them late: of the headers, of the body, or of a length before a piece of it."""
        begin = b"HTTP/1.1 200 OK\r\n"
        if fault == "trickles a body":
            begin += b"Content-Length: %d\r\n\r\n" % len(CONTENT)
        elif fault == "trickles in chunks":
            begin += b"Transfer-Encoding: chunked\r\n\r\n4;"
        self.wfile.write(begin)
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)

    class Own(Faulty):
        script: ClassVar[list[str]] = []
        seen: ClassVar[list[tuple[str, str]]] = []

    with served({"files": folder}, Own) as url:
        yield f"{url}/files/a.bin", Own, folder


def fetch(server, tmp_path, **options):
    path = tmp_path / "out" / "a.bin"
    expected = {"size": len(CONTENT), "sha256": DIGEST, "policy": QUICK}
    download(server[0], path, **(expected | options))
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.bin"]
    return path.read_bytes()


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["500"],
        ["503", "429", "500"],
        ["hang"],
        ["cut"],
        ["cut", "cut", "500"],
        ["cut", "ignores ranges"],
        ["cut without a tag"],
    ],
)
def test_a_file_comes_whole_through_passing_faults(server, tmp_path, faults):
    server[1].script += faults
    assert fetch(server, tmp_path) == CONTENT


def test_what_came_before_a_cut_is_not_fetched_again(server, tmp_path):
    server[1].script += ["cut"]
    told = []
    assert fetch(server, tmp_path, progress=told.append) == CONTENT
    assert server[1].seen == [("cut", ""), ("", f"bytes={HALF}-")]
    assert sum(told) == len(CONTENT)


def test_another_call_goes_on_with_the_part(server, tmp_path):
    server[1].script += ["cut", "403"]
    with pytest.raises(TransferError, match="HTTP 403"):
        fetch(server, tmp_path)
    assert (tmp_path / "out/a.bin.part").stat().st_size == HALF
    assert fetch(server, tmp_path) == CONTENT
    assert server[1].seen[-1] == ("", f"bytes={HALF}-")


def test_a_part_of_another_version_is_thrown_away(server, tmp_path):
    server[1].script += ["cut", "404"]
    with pytest.raises(TransferError):
        fetch(server, tmp_path, sha256=None, size=None)
    other = bytes(len(CONTENT))
    (server[2] / "a.bin").write_bytes(other)  # another ETag: the server answers with the whole file
    assert fetch(server, tmp_path, sha256=None) == other


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_repeated(server, tmp_path, status):
    server[1].script += [str(status)]
    with pytest.raises(TransferError, match=rf"/files/a.bin: HTTP {status}"):
        fetch(server, tmp_path)
    assert len(server[1].seen) == 1


@pytest.mark.parametrize("fault", ["500", "429", "hang"])
def test_it_gives_up_after_so_many_attempts(server, tmp_path, fault):
    server[1].script += [fault] * 9
    with pytest.raises(TransferError, match="gave up after 4 attempts"):
        fetch(server, tmp_path)
    assert len(server[1].seen) == 4
    assert not (tmp_path / "out/a.bin").exists()


@pytest.mark.parametrize("fault", ["trickles headers", "trickles a body", "trickles in chunks"])
def test_a_server_that_trickles_counts_as_one_that_is_silent(server, tmp_path, fault):
    server[1].script += [fault]
    assert fetch(server, tmp_path, policy=PACED) == CONTENT
    server[1].script += [fault] * 9
    for work in (lambda: get(server[0], policy=PACED), lambda: fetch(server, tmp_path / "again", policy=PACED)):
        with pytest.raises(TransferError, match=r"a\.bin: gave up after 2 attempts: too slow: \d+ bytes in 1 s"):
            work()
    assert not list((tmp_path / "again").rglob("a.bin"))


def test_an_answer_without_end_is_left_at_once_and_nothing_stays_of_it(server, tmp_path):
    server[1].script += ["sends without end"] * 2
    with pytest.raises(TransferError, match=rf"sends more than the {len(CONTENT)} bytes that the file has"):
        fetch(server, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(TransferError, match="sends more than 200000 bytes"):
        get(server[0], policy=QUICK, most=200_000)
    assert [fault for fault, _ in server[1].seen] == ["sends without end"] * 2


def test_a_file_of_unknown_size_must_say_it_and_fit_on_the_disk(server, tmp_path, monkeypatch):
    server[1].script += ["sends without end"]
    with pytest.raises(TransferError, match=r"does not say how many bytes the file has; expected Content-Length"):
        fetch(server, tmp_path, size=None, sha256=None)
    full = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr("tsd.data.transfer.shutil.disk_usage", lambda path: full)
        with pytest.raises(TransferError, match=rf"{len(CONTENT)} bytes are to come, 1000 are free in "):
            fetch(server, tmp_path, size=None, sha256=None)
    with pytest.raises(TransferError, match=rf"has {len(CONTENT)} bytes, expected at most 1000"):
        get(server[0], policy=QUICK, most=1000)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_server_may_send_on_to_another_address(server, tmp_path):
    server[1].script += ["sends on to /files/b.bin", "sends on to a.bin?endless"]
    assert fetch(server, tmp_path) == CONTENT
    server[1].script += ["sends on to a.bin"] * 9
    with pytest.raises(TransferError, match="sends on to another address more than 5 times"):
        get(server[0], policy=QUICK)


def test_an_answer_that_is_compressed_is_refused(server):
    server[1].script += ["compresses"]
    with pytest.raises(TransferError, match=r"answers in gzip, expected the file's own bytes"):
        get(server[0], policy=QUICK)


def test_another_digest_or_size_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(TransferError, match=rf"SHA-256 is {DIGEST}, expected {'0' * 64}"):
        fetch(server, tmp_path, sha256="0" * 64)
    with pytest.raises(TransferError, match=rf"has {len(CONTENT)} bytes, expected 5"):
        fetch(server, tmp_path, size=5)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_part_is_found_by_the_digest_and_fetched_anew(server, tmp_path):
    server[1].script += ["cut", "404"]
    with pytest.raises(TransferError):
        fetch(server, tmp_path)
    part = tmp_path / "out/a.bin.part"
    part.write_bytes(bytes(part.stat().st_size))
    assert fetch(server, tmp_path) == CONTENT


def test_a_full_disk_is_told_at_once(server, tmp_path):
    with pytest.raises(OSError, match="No space left"):
        download(server[0], tmp_path / "a.bin", policy=QUICK, progress=_full)


def _full(number):
    if number:
        raise OSError(28, "No space left on device")


def test_small_files_come_whole_or_not_at_all(server):
    server[1].script += ["cut", "hang", "503"]
    assert get(server[0], policy=QUICK) == CONTENT
    server[1].script += ["404"]
    with pytest.raises(TransferError, match="HTTP 404"):
        get(server[0], policy=QUICK)
    with pytest.raises(TransferError, match="gave up after 4 attempts"):
        get("http://127.0.0.1:9/nothing", policy=QUICK)


def test_the_server_serves_nothing_but_its_folders(server, tmp_path):
    (tmp_path / "secret").write_text("no")
    for path in ("/files/../secret", "/files/%2e%2e/secret", "/secret", "/"):
        with pytest.raises(TransferError, match="HTTP 404"):
            get(server[0].replace("/files/a.bin", path), policy=QUICK)
