"""Connections that end when too little comes over them.

A timeout of a socket begins anew with each byte: a server that sends one a second, in the headers or in the body, never
meets it. What is read of these connections is counted below HTTP, so that no part of an answer escapes.
"""

import http.client
import io
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


@dataclass(frozen=True)
class Pace:
    """The least that must come: so many bytes in so many seconds of waiting for them."""

    bytes: int
    seconds: float


class SlowError(OSError):
    """Too little came."""


class _Counted(io.RawIOBase):
    """What is read of a socket. Time counts only while it is waited for: a disk may take its own."""

    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        super().__init__()
        self._raw, self._pace = raw, pace
        self._came, self._waited = 0, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        started = time.monotonic()
        number = self._raw.readinto(buffer)
        self._waited += time.monotonic() - started
        self._came += number or 0
        if self._waited >= self._pace.seconds:
            if number and self._came < self._pace.bytes:
                raise SlowError(f"too slow: {self._came} bytes in {self._waited:.0f} s")
            self._came, self._waited = 0, 0.0
        return number

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, pace: Pace, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Counted(self.fp.detach(), pace))


class _Adapter(HTTPAdapter):
    def __init__(self, pace: Pace) -> None:
        answer = {"response_class": staticmethod(partial(_Answer, pace))}
        plain, secure = (type(f"Paced{kind.__name__}", (kind,), answer) for kind in (HTTPConnection, HTTPSConnection))
        self._pools = {
            "http": type("PacedPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("PacedSecurePool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def keep_pace(session: requests.Session, pace: Pace) -> requests.Session:
    """The session, whose requests end with an error when less comes.

    The error, of requests, has a :class:`SlowError` among its contexts.
    """
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pace))
    return session
