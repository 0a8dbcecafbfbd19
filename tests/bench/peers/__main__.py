"""Starts one peer with one workload, sends a closed loop of single-sample clients, says what came of it."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from ..load import LoadError, closed_loop
from . import PEERS, WORKLOADS, StartError, free_port, pypi


def main() -> int:
    arguments = parse_arguments()
    # As by Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name in arguments.peer or PEER_NAMES:
        for workload in arguments.workload or list(WORKLOADS):
            try:
                measure(name, workload, arguments)
            except (StartError, LoadError) as error:
                print(f"{name:<9} {workload:<7} {error}", flush=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.peers", description=__doc__)
    parser.add_argument("--peer", action="append", choices=PEER_NAMES, help="repeatable; default: all")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="repeatable; default: all")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1), metavar=("SERVER", "LOAD"))
    return parser.parse_args()


def measure(name: str, workload: str, arguments: argparse.Namespace) -> None:
    peer = PEERS[PEER_NAMES.index(name)]
    server_core, load_core = arguments.cores
    with peer.start(workload, free_port(), server_core) as server:
        sent = (server.url, server.body, server.headers)
        began, before = time.monotonic(), server.cpu_seconds()
        many = closed_loop(*sent, arguments.connections, arguments.seconds, load_core)
        share = (server.cpu_seconds() - before) / (time.monotonic() - began)
        # Most peers work for clients that have gone: the next loop begins when what this one left is done.
        server.answers()
        one = closed_loop(*sent, 1, min(2, arguments.seconds), load_core)
        right = "answers rightly" if server.answers() else "WRONG OR NO ANSWER"
        print(
            f"{name:<9} {workload:<7} {many.per_second:9.1f} req/s on {share:4.0%} of its core  "
            f"p50 {many.p50_ms:7.2f}  p99 {many.p99_ms:7.2f} ms  failed {sum(many.failures.values())}  "
            f"c1 p50 {one.p50_ms:.2f} ms  {server.pss() / 2**20:.0f} MiB  start {server.start_seconds:.1f} s  {right}",
            flush=True,
        )


PEER_NAMES = [peer.name for peer in PEERS]

if __name__ == "__main__":
    pypi.main(main)
