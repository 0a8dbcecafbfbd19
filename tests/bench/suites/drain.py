"""SIGTERM under clients that keep their connections: nothing accepted may be lost, no kept connection reset."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

from ..context import Bench, model
from ..load import LoadError
from ..report import Row, at_most
from ..server import HOST, Server
from ..workloads import MINILM, Request
from . import Claim, attempt

GROUP = "drain"
CLIENTS = 32
REPEATS = 20
# Shorter than as shipped, so that twenty repeats take a minute.
DRAIN_DELAY_MS = 500
LONGEST_SECONDS = 30


def rows(bench: Bench) -> Iterator[Row]:
    """Alone; the Service with a second pod belongs to the cluster's tests."""
    repeats = 3 if bench.quick else REPEATS
    claims = [
        Claim(
            GROUP, f"SIGTERM under {CLIENTS} keep-alive clients, {repeats} repeats: accepted requests lost", at_most(0)
        ),
        Claim(
            GROUP, f"SIGTERM under {CLIENTS} keep-alive clients, {repeats} repeats: kept connections reset", at_most(0)
        ),
    ]
    yield from attempt(claims, partial(repeated, bench, repeats, claims))


def repeated(bench: Bench, repeats: int, claims: list[Claim]) -> list[Row]:
    ends: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    for _ in range(repeats):
        ends_once, status = one_end(bench)
        ends += ends_once
        statuses[status] += 1
    lost, reset = claims
    shared = {"answered": ends["answered"], "other_status": ends["other status"]}
    exits = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    return [
        lost.row(ends["lost"] + ends["other status"], **shared, exit_status=exits),
        # A connection that was still in the listener's backlog had not been accepted.
        reset.row(ends["reset"], never_accepted=ends["never accepted"]),
    ]


def one_end(bench: Bench) -> tuple[Counter[str], int]:
    """Lets the clients loose, ends the server under them, and counts how each request ended."""
    with bench.serve(model(MINILM), drain_delay_ms=DRAIN_DELAY_MS) as server:
        clients = [Client(server, MINILM.json("minilm")) for _ in range(CLIENTS)]
        for client in clients:
            client.thread.start()
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.thread.join(LONGEST_SECONDS)
            if client.thread.is_alive():
                raise LoadError(f"a client was still waiting {LONGEST_SECONDS} s after SIGTERM")
        return sum((client.ends for client in clients), Counter()), server.process.wait(LONGEST_SECONDS)


class Client:
    """Asks again and again on one connection, a new one where it was told to close, until nobody listens."""

    def __init__(self, server: Server, request: Request) -> None:
        self.server, self.request = server, request
        self.ends: Counter[str] = Counter()
        self.thread = threading.Thread(target=self.ask_on, daemon=True)

    def ask_on(self) -> None:
        while self.use_one_connection():
            pass

    def use_one_connection(self) -> bool:
        """False when nobody listens any more."""
        connection = http.client.HTTPConnection(HOST, self.server.http_port, timeout=LONGEST_SECONDS)
        try:
            connection.connect()
        except OSError:
            return False
        connection.auto_open = 0
        kept = False
        try:
            while self.ask(connection):
                kept = True
        except http.client.NotConnected:
            # The answer before said that the connection closes.
            return True
        except http.client.IncompleteRead:
            self.ends["lost"] += 1
        except (OSError, http.client.HTTPException):
            self.ends["reset" if kept else "never accepted"] += 1
        finally:
            connection.close()
        return True

    def ask(self, connection: http.client.HTTPConnection) -> bool:
        """Whether the connection may be used again."""
        connection.request("POST", self.request.path, self.request.body, self.request.headers)
        answer = connection.getresponse()
        answer.read()
        self.ends["answered" if answer.status == 200 else "other status"] += 1
        return not answer.will_close
