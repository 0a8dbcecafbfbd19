"""Looks at a server while something else loads it: at its memory, whether its health is still told at once, and how
long its batches take.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import statistics
import threading
import time
from urllib.parse import urlsplit

from .load import percentile
from .server import Server

PAUSE_SECONDS = 0.02
BETWEEN_TIMES_SECONDS = 1


class Watch:
    """A context: looks from the start to the end of it, on the core of the caller.

    The caller's process only waits meanwhile for the generator, which is one of its own; so a look costs the load no
    more than a request and its answer.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.health_ms: list[float] = []
        self.resident_mib: list[float] = []
        self.unhealthy = 0
        self.over = threading.Event()
        url = urlsplit(server.health_url)
        self.path = url.path
        # Kept: to connect anew takes the load's core from the load, and is not what is timed.
        self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=5)
        self.thread = threading.Thread(target=self.look_on, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.connection.close()

    @property
    def health_p99_ms(self) -> float:
        """Of all looks."""
        return percentile(sorted(self.health_ms), 99)

    def look_on(self) -> None:
        self.go_first()
        while not self.over.wait(PAUSE_SECONDS):
            self.ask_health()
            # Not its part of shared pages: to walk the memory map takes milliseconds, of the server and of the load's core.
            self.resident_mib.append(self.server.resident_mib())

    def go_first(self) -> None:
        """The load on the same core would be in the way, and is not what is timed. Without root it is."""
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)

    def ask_health(self) -> None:
        began = time.perf_counter()
        try:
            self.connection.request("GET", self.path)
            answer = self.connection.getresponse()
            answer.read()
            self.unhealthy += answer.status != 200
        except (OSError, http.client.HTTPException):
            self.unhealthy += 1
            # The next look connects again.
            self.connection.close()
        finally:
            self.health_ms.append((time.perf_counter() - began) * 1000)


class WatchTimes:
    """A context: how long a batch of each size takes, on average over all looks. One look tells of the last runs only."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.looks: list[dict[int, float]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look_on, daemon=True)

    def __enter__(self) -> WatchTimes:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.looks.append(self.server.bucket_times())

    @property
    def milliseconds(self) -> dict[int, float]:
        """Of each batch size; known when the context has ended."""
        return {size: statistics.mean(look[size] for look in self.looks) for size in self.looks[-1]}

    def look_on(self) -> None:
        while not self.over.wait(BETWEEN_TIMES_SECONDS):
            self.looks.append(self.server.bucket_times())
