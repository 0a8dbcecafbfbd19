#!/usr/bin/env python3
"""Builds the server, serves EfficientNet-Lite0 on this machine and classifies real photos by every form of body.

serve.py            serve until Ctrl-C; exit 1 where an answer is wrong
serve.py --once     stop after the photos
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("ORTOLAN_CACHE", ROOT / ".cache"))
PHOTOS = ROOT / "deploy" / "samples" / "photos"
READY_TIMEOUT_SECONDS = 60

# What each photo shows, as class numbers of ImageNet.
EXPECTED = {"coffee": {967}, "camera": {872}, "cat": {281, 282, 285}}

# The server is on this machine, whatever proxy the environment names for others.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Body = tuple[str, bytes]


def as_json(photo: bytes) -> Body:
    return "application/json", json.dumps({"image": base64.b64encode(photo).decode()}).encode()


def as_file(photo: bytes) -> Body:
    return "image/png", photo


def as_form(photo: bytes) -> Body:
    head = b'--edge\r\ncontent-disposition: form-data; name="image"; filename="photo.png"\r\n\r\n'
    return "multipart/form-data; boundary=edge", head + photo + b"\r\n--edge--\r\n"


FORMS = {"JSON with base64": as_json, "image file": as_file, "multipart form": as_form}


def post(url: str, body: Body) -> dict:
    request = urllib.request.Request(url, data=body[1], headers={"content-type": body[0]})
    with DIRECTLY.open(request, timeout=60) as answer:
        return json.load(answer)


def status_of(url: str) -> int:
    try:
        with DIRECTLY.open(url, timeout=2) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except http.client.HTTPException:
        # Something answers that does not speak HTTP.
        return -1
    except OSError:
        return 0


def start(port: int, grpc_port: int, metrics_port: int) -> subprocess.Popen[bytes]:
    if status_of(f"http://127.0.0.1:{metrics_port}/health") != 0:
        sys.exit(
            f"port {metrics_port} answers already; end that server or choose others:"
            ' make serve ARGS="--port 8090 --grpc-port 8091 --metrics-port 9190"'
        )
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--locked", "--package", "inference-pod"], cwd=ROOT, check=True
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    environment = os.environ | {
        "ORT_DYLIB_PATH": str(CACHE / "onnxruntime" / "lib" / "libonnxruntime.so"),
        "ORTOLAN__SERVER__PORT": str(port),
        "ORTOLAN__SERVER__GRPC_PORT": str(grpc_port),
        "ORTOLAN__SERVER__METRICS_PORT": str(metrics_port),
    }
    configs = ROOT / "deploy" / "configs"
    # The cache may be elsewhere than where the file for a laptop has it.
    base = CACHE / "serve.yaml"
    base.write_text((configs / "base.yaml").read_text().replace("path: .cache/", f"path: {CACHE.resolve()}/"))
    layers = [f"--config={layer}" for layer in (base, configs / "dev.yaml")]
    return subprocess.Popen([target / "release" / "inference-pod", "serve", *layers], env=environment)


def wait_until_ready(server: subprocess.Popen[bytes], metrics_port: int) -> None:
    end = time.monotonic() + READY_TIMEOUT_SECONDS
    while status_of(f"http://127.0.0.1:{metrics_port}/ready") != 200:
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}; its last lines say why")
        if time.monotonic() > end:
            sys.exit(f"the server is not ready after {READY_TIMEOUT_SECONDS} s")
        time.sleep(0.05)


def classify(url: str) -> bool:
    """Sends every photo in every form and prints what came back. False where an answer is wrong."""
    good = True
    for photo, expected in EXPECTED.items():
        data = (PHOTOS / f"{photo}.png").read_bytes()
        for name, form in FORMS.items():
            answer = post(url, form(data))
            top = answer["predictions"][0]
            right = top["class_id"] in expected and (photo != "coffee" or top["confidence"] > 0.8)
            good &= right
            took = f"{answer['inference_time_ms']:6.1f} ms"
            line = f"{top['class_id']:>4} {top['label']:<16} {top['confidence']:.3f}  {took}"
            print(f"  {photo + '.png':<11} {name:<17} {line}{'' if right else '  WRONG'}", flush=True)
    return good


def hint(port: int, grpc_port: int, metrics_port: int) -> str:
    return f"""
Serving on http://127.0.0.1:{port}, gRPC on {grpc_port}, metrics on http://127.0.0.1:{metrics_port}/metrics. Try next:
  curl -H 'content-type: image/png' --data-binary @deploy/samples/photos/camera.png http://127.0.0.1:{port}/predict/espresso
  curl http://127.0.0.1:{port}/info
  curl http://127.0.0.1:{metrics_port}/metrics
  your own model: a folder with model.onnx; `target/release/inference-pod check FOLDER`, then a line in deploy/configs
Ctrl-C stops the server; what was accepted is still answered.
"""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--once", action="store_true")
    arguments.add_argument("--port", type=int, default=8080)
    arguments.add_argument("--grpc-port", type=int, default=8081)
    arguments.add_argument("--metrics-port", type=int, default=9090)
    args = arguments.parse_args()
    server = start(args.port, args.grpc_port, args.metrics_port)
    try:
        wait_until_ready(server, args.metrics_port)
        good = classify(f"http://127.0.0.1:{args.port}/predict/espresso")
        if good and not args.once:
            print(hint(args.port, args.grpc_port, args.metrics_port), flush=True)
            return server.wait()
    except KeyboardInterrupt:
        # The terminal has told the server too.
        return server.wait()
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            server.wait()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
