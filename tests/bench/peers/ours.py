"""Our own server in the same clothes as a peer: a build as it is published, asked in JSON, everything else as shipped."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

from . import HERE, ROOM_MS, Command, Oip, Peer, Plain, Question, Start, Workload, free_port, pypi

REPOSITORY = HERE.parents[2]


class Ours(Peer):
    """Photos go to /predict, tensors to the Open Inference Protocol."""

    @property
    def version(self) -> str:
        """As the binary says."""
        said = subprocess.run([str(self.install()), "--version"], capture_output=True, text=True, check=True)
        return said.stdout.split()[-1]

    def install(self) -> Path:
        """The binary: `$INFERENCE_POD`, else that of a build as it is published."""
        built = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"), "dist", "inference-pod")
        program = Path(os.environ.get("INFERENCE_POD") or built).absolute()
        if not program.exists():
            raise pypi.SetupError(f"{program} is missing; `make bench-peers` builds it")
        return program

    def question(self, workload: Workload, port: int) -> Question:
        """One sample."""
        if workload.name != "image":
            return super().question(workload, port)
        return Peer.question(replace(self, path="/predict/{workload}", form=Plain()), workload, port)


def serve(start: Start, bounds: dict[str, int]) -> Command:
    """One thread on one core, and the largest batch that the peers may make too."""
    model = {
        "name": start.workload.name,
        "path": str(pypi.cache_folder() / "models" / start.workload.model),
        "batch_size": start.workload.batch_size,
        **bounds,
        **({"task": "image-classification"} if start.workload.name == "image" else {}),
    }
    ports = {"port": start.port, "grpc_port": free_port(), "metrics_port": free_port()}
    server = {"host": "127.0.0.1", **ports, "drain_delay_ms": 0, "threads": 1}
    config = start.scratch / "config.yaml"
    config.write_text(json.dumps({"server": server, "logging": {"level": "warn"}, "models": [model]}))
    library = pypi.cache_folder() / "onnxruntime" / "lib" / "libonnxruntime.so"
    environment = {**os.environ, "ORT_DYLIB_PATH": str(library), "ORT_DISABLE_TELEMETRY": "1"}
    return Command([str(start.program), "serve", "--config", str(config)], environment, start.scratch)


OURS = Ours(
    "ours",
    "inference-pod",
    f"dynamic batching, never waits; max_queue_ms {ROOM_MS}, under overload as shipped (500)",
    "/v2/models/{workload}/infer",
    Oip(),
    # Clients in a closed loop do not back off: as shipped, those of a slow model would be refused again and again.
    lambda start: serve(start, {"max_queue_ms": ROOM_MS}),
    shipped=lambda start: serve(start, {}),
)
