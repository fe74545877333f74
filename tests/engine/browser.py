"""A headless Chromium over its DevTools protocol: open a page, wait for words, take a picture.

By hand: python -m tests.engine.browser URL out.png WORD …
"""

import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import aiohttp

from tests.conftest import free_port
from tests.debian import need

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1600,1000",
]


def find_chromium() -> str:
    """Chromium's path; installs Debian's package if TSD_TEST_INSTALL=1, else skips the test."""
    return need("chromium", "chromium")


def visit(url: str, words: list[str], picture: Path, timeout: float = 90) -> str:
    """Open ``url``, wait until all ``words`` are on the page, save a screenshot; returns the page's text.

    Raises:
        AssertionError: a word is missing after ``timeout`` seconds; the screenshot is saved all the same.
    """
    port = free_port()
    # Its children may still write to the profile for a moment after it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [find_chromium(), *FLAGS, f"--user-data-dir={profile}", f"--remote-debugging-port={port}", url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                return asyncio.run(_watch(_page(port), words, picture, timeout))
            finally:
                process.terminate()
                process.wait(30)


def _page(port: int) -> str:
    """The open page's DevTools address."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                pages = [entry for entry in json.load(answer) if entry["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError("chromium did not start")


async def _watch(address: str, words: list[str], picture: Path, timeout: float) -> str:
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket_:
        number = 0

        async def call(method: str, **parameters):
            nonlocal number
            number += 1
            await socket_.send_json({"id": number, "method": method, "params": parameters})
            while True:
                answer = await socket_.receive_json()
                if answer.get("id") == number:
                    return answer.get("result", {})

        deadline = time.monotonic() + timeout
        text = ""
        while time.monotonic() < deadline:
            found = await call("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
            text = found.get("result", {}).get("value", "")
            if all(word in text for word in words):
                break
            await asyncio.sleep(1)
        await asyncio.sleep(1.5)
        shot = await call("Page.captureScreenshot", format="png")
        picture.write_bytes(base64.b64decode(shot["data"]))
    missing = [word for word in words if word not in text]
    assert not missing, f"not on the page: {missing}; it says: {text[:1500]}"
    return text


if __name__ == "__main__":
    print(visit(sys.argv[1], sys.argv[3:], Path(sys.argv[2]))[:3000])
