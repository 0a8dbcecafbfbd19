#!/usr/bin/env python3
"""Broken bodies against a running server: it must answer each with a status below 500, and go on serving.

    fuzz.py [--seconds N] [--seed N]
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("ORTOLAN_CACHE", ROOT / ".cache"))
COFFEE = (ROOT / "deploy" / "samples" / "photos" / "coffee.png").read_bytes()
PORT, METRICS_PORT = 18080, 19090
TYPES = ["application/json", "image/png", "image/jpeg", "image/webp", "multipart/form-data; boundary=edge", "text/plain"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    subprocess.run(["cargo", "build", "--quiet", "--release", "--package", "inference-pod"], cwd=ROOT, check=True)
    config = folder / "config.yaml"
    models = [
        {"name": "espresso", "path": str(CACHE / "models" / "efficientnet-lite0"), "task": "image-classification"},
        {"name": "tiny", "path": str(CACHE / "models" / "tiny")},
    ]
    server = {"host": "127.0.0.1", "port": PORT, "metrics_port": METRICS_PORT, "max_body_bytes": 4_000_000}
    config.write_text(json.dumps({"server": server, "logging": {"level": "warn"}, "models": models}))
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    library = CACHE / "onnxruntime" / "lib" / "libonnxruntime.so"
    environment = os.environ | {"ORT_DYLIB_PATH": str(library)}
    return subprocess.Popen([target / "release" / "inference-pod", "serve", "--config", config], env=environment)


def broken(source: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, a piece cut out, doubled or moved to the end."""
    data = bytearray(source)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(data) or 1)
        end = min(len(data), at + dice.randint(1, 64))
        match dice.randrange(4):
            case 0 if data:
                data[at % len(data)] = dice.randrange(256)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case _:
                data = data[: at + 1]
    return bytes(data)


def seeds() -> list[tuple[str, bytes]]:
    image = json.dumps({"image": base64.b64encode(COFFEE).decode()}).encode()
    tensor = {"inputs": [{"name": "input", "shape": [2, 4], "datatype": "FP32", "data": [[1, 2, 3, 4], [5, 6, 7, 8]]}]}
    form = b'--edge\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n' + COFFEE + b"\r\n--edge--\r\n"
    return [
        ("/predict/espresso", image),
        ("/predict/espresso", COFFEE),
        ("/predict/espresso", form),
        ("/predict/tiny", json.dumps(tensor).encode()),
        ("/v2/models/tiny/infer", json.dumps(tensor).encode()),
    ]


def send(path: str, kind: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    try:
        connection.request("POST", path, body, {"content-type": kind})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200 and "error" not in json.loads(text):
            raise SystemExit(f"{answer.status} without a sentence: {text!r}")
        return answer.status
    finally:
        connection.close()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--seed", type=int, default=time.time_ns())
    args = arguments.parse_args()
    dice = random.Random(args.seed)
    print(f"seed {args.seed}", flush=True)
    seen: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        try:
            while not ready():
                if server.poll() is not None:
                    return 1
                time.sleep(0.05)
            end = time.monotonic() + args.seconds
            while time.monotonic() < end:
                path, source = dice.choice(seeds())
                body, kind = broken(source, dice), dice.choice(TYPES)
                status = send(path, kind, body)
                seen[status] += 1
                if status >= 500 or server.poll() is not None:
                    Path("fuzz-failure.bin").write_bytes(body)
                    print(f"{status} for {path} as {kind}; the body is in fuzz-failure.bin")
                    return 1
            last = send("/predict/espresso", "image/png", COFFEE)
            print(f"{sum(seen.values())} requests: {dict(sorted(seen.items()))}; a whole photo at the end: {last}")
            return 0 if last == 200 else 1
        finally:
            server.terminate()


def ready() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=2)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
