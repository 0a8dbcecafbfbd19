"""The servers that `make bench-peers` sets beside ours: installed, started and asked, each as its own docs advise.

    python3 -m tests.bench.peers --workload minilm --peer mosec --seconds 5

Every peer runs the same code (servers/served.py) in an environment of its own, with its own batching on and ONNX
Runtime on one thread. Usage reports are off wherever a peer has them. Standard library only; Python 3.11 or 3.12,
because Triton's Python backend needs numpy below 2 and ONNX Runtime no longer has wheels for anything older.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .forms import WORKLOADS, Oip, Plain, Samples, Workload, is_right
from .running import Command, Question, Running, StartError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "deploy"))
import pypi  # noqa: E402

__all__ = ["PEERS", "WORKLOADS", "Peer", "Running", "StartError", "Workload"]

SERVERS = HERE / "servers"
PYTHONS = ((3, 11), (3, 12))
# A server that holds a batch back for company may do so for this long.
MAX_WAIT_MS = 5

QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "ORT_DISABLE_TELEMETRY": "1",
    "OTEL_SDK_DISABLED": "true",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Start:
    """What a command is made from. `program` is what `install` gave."""

    workload: Workload
    port: int
    program: Path
    scratch: Path


@dataclass(frozen=True)
class Peer:
    """A server that stands beside ours."""

    name: str
    package: str
    note: str
    path: str
    form: Plain | Oip | Samples
    command: Callable[[Start], Command]
    prepare: Callable[[Path], None] = lambda interpreter: None
    shipped: Callable[[Start], Command] | None = None
    # What a table must say beside the name.
    by: str = ""

    @property
    def title(self) -> str:
        """As tables name it."""
        return f"{self.name} ({self.by})" if self.by else self.name

    @property
    def version(self) -> str:
        """As pinned."""
        return pypi.read_pins(self._requirements())[self.package].version

    @property
    def as_shipped(self) -> Peer:
        """The server with every bound that it comes with: itself, unless `command` gives clients more time."""
        return replace(self, command=self.shipped, shipped=None) if self.shipped else self

    def install(self) -> Path:
        """Its environment with the pinned packages, made on first use; the interpreter in it."""
        if sys.version_info[:2] not in PYTHONS:
            raise pypi.SetupError("the peers need Python 3.11 or 3.12: run this with python3.11 or python3.12")
        with pypi.sole_run(f"peer-{self.name}"):
            interpreter = pypi.virtual_environment(self._requirements())
            self.prepare(interpreter)
        return interpreter

    def start(self, workload: str, port: int, core: int) -> Running:
        """The server on this core, once it has answered a prediction. `StartError` shows the end of its log."""
        logs = pypi.cache_folder() / "peers"
        scratch = logs / f"{self.name}-{workload}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        command = self.command(Start(WORKLOADS[workload], port, self.install(), scratch))
        return Running(command, self.question(WORKLOADS[workload], port), core, logs / f"{self.name}-{workload}.log")

    def question(self, workload: Workload, port: int) -> Question:
        """One sample, as this server wants to be asked."""
        return Question(
            url=f"http://127.0.0.1:{port}{self.path.format(workload=workload.name)}",
            body=self.form.body(workload),
            is_right=lambda answer: is_right(workload, self.form.values(workload, json.loads(answer))),
        )

    def _requirements(self) -> Path:
        return HERE / "requirements" / f"{self.name}.txt"


def environment(start: Start, **more: str) -> dict[str, str]:
    """What every peer finds in its environment: the workload, and its own programs first."""
    return {
        **os.environ,
        **QUIET,
        "BENCH_WORKLOAD": start.workload.name,
        "BENCH_MODEL": str(pypi.cache_folder() / "models" / start.workload.model),
        "BENCH_BATCH_SIZE": str(start.workload.batch_size),
        "BENCH_MAX_WAIT_MS": str(MAX_WAIT_MS),
        "BENCH_PORT": str(start.port),
        "PYTHONPATH": str(SERVERS),
        "PATH": f"{start.program.parent}:{os.environ['PATH']}",
        **more,
    }


def script(name: str, *arguments: str) -> Callable[[Start], Command]:
    """A server that is a Python script."""

    def command(start: Start) -> Command:
        line = [str(start.program), str(SERVERS / name), *(item.format(port=start.port) for item in arguments)]
        return Command(line, environment(start), start.scratch)

    return command


def bentoml(start: Start) -> Command:
    line = ["-m", "bentoml", "serve", "with_bentoml:service", "--working-dir", str(SERVERS)]
    line += ["--host", "127.0.0.1", "--port", str(start.port)]
    return Command(
        [str(start.program), *line], environment(start, BENTOML_HOME=str(start.scratch / "home")), start.scratch
    )


def mlserver(start: Start) -> Command:
    settings = {
        # No line per request; its own default is for development.
        "MLSERVER_DEBUG": "false",
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_HTTP_PORT": str(start.port),
        "MLSERVER_GRPC_PORT": str(free_port()),
        "MLSERVER_METRICS_PORT": str(free_port()),
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_MODEL_MAX_BATCH_SIZE": str(start.workload.batch_size),
        "MLSERVER_MODEL_MAX_BATCH_TIME": str(MAX_WAIT_MS / 1000),
    }
    program = str(start.program.parent / "mlserver")
    return Command(
        [str(start.program), program, "start", str(SERVERS / "mlserver")],
        environment(start, **settings), start.scratch,
    )  # fmt: skip


def triton(start: Start) -> Command:
    home = triton_home(start.program)
    repository = triton_repository(start)
    line = [str(home / "bin" / "tritonserver"), f"--model-repository={repository}", "--http-address=127.0.0.1"]
    line += [f"--http-port={start.port}", "--allow-grpc=false", "--allow-metrics=false"]
    line += [f"--backend-directory={home / 'backends'}", f"--cache-directory={home / 'caches'}"]
    # The backend embeds Python, and finds the packages of the first one on PATH.
    libraries = f"{home.parent.parent / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return Command(line, environment(start, LD_LIBRARY_PATH=libraries), start.scratch)


def triton_repository(start: Start) -> Path:
    """A model repository with the workload alone."""
    model = start.scratch / start.workload.name
    (model / "1").mkdir(parents=True)
    # The backend looks for modules beside the model.
    shutil.copy(SERVERS / "triton" / "model.py", model / "1")
    shutil.copy(SERVERS / "served.py", model / "1")
    config = (SERVERS / "triton" / f"{start.workload.name}.pbtxt").read_text()
    config = config.replace("BATCH_SIZE", str(start.workload.batch_size))
    (model / "config.pbtxt").write_text(config.replace("MAX_WAIT_US", str(MAX_WAIT_MS * 1000)))
    return start.scratch


def triton_home(interpreter: Path) -> Path:
    major, minor = sys.version_info[:2]
    return interpreter.parent.parent / "lib" / f"python{major}.{minor}" / "site-packages" / "pytriton" / "tritonserver"


def prepare_triton(interpreter: Path) -> None:
    """Puts the stub of this Python where the backend looks for it, and sees that it finds Python's library."""
    home, version = triton_home(interpreter), f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        shutil.copy(home / "python_backend_stubs" / version / stub.name, stub)
    if is_libpython_missing(stub):
        # Debian's interpreter has its library built in; what embeds Python needs it as a file.
        install_debian(f"libpython{version}", "Triton's Python backend needs Python's library")


def is_libpython_missing(stub: Path) -> bool:
    path = {**os.environ, "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
    found = subprocess.run(["ldd", str(stub)], env=path, capture_output=True, text=True, check=True).stdout
    return any("libpython" in line and "not found" in line for line in found.splitlines())


def install_debian(package: str, why: str) -> None:
    """A system package, installed where this may be done; else the error says how."""
    install = ["apt-get", "install", "--yes", "--no-install-recommends", package]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise pypi.SetupError(f"{why}; install it with: sudo {' '.join(install)}")
    pypi.say(f"installing the Debian package {package}")
    pypi.run(["apt-get", "update", "--quiet"], "reading Debian's package lists")
    pypi.run(install, f"installing {package}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# Longer than 64 clients in a closed loop wait for the slowest of the models, which ends no request before its turn.
ROOM_MS = 20_000
WAIT = f"waits up to {MAX_WAIT_MS} ms"
MOSEC = ("--address", "127.0.0.1", "--port", "{port}")

PEERS = [
    Peer(
        "mosec", "mosec", f"dynamic batching, {WAIT}; timeout {ROOM_MS} ms, under overload as shipped (3000)",
        "/inference", Plain(), script("with_mosec.py", *MOSEC, "--timeout", str(ROOM_MS)),
        shipped=script("with_mosec.py", *MOSEC),
    ),
    Peer(
        "litserve", "litserve", f"dynamic batching, {WAIT}, fast queue", "/predict", Plain(),
        script("with_litserve.py"),
    ),
    Peer("bentoml", "bentoml", "adaptive batching", "/predict", Samples(), bentoml),
    Peer(
        "mlserver", "mlserver", f"adaptive batching, {WAIT}, no parallel workers", "/v2/models/peer/infer", Oip(),
        mlserver,
    ),
    Peer(
        "triton", "nvidia-pytriton", f"tritonserver 2.51 of that wheel, dynamic batching, {WAIT}",
        "/v2/models/{workload}/infer", Oip(), triton, prepare_triton, by="Python backend",
    ),
    Peer("fastapi", "fastapi", "by hand, no batching", "/predict", Plain(), script("with_fastapi.py")),
]  # fmt: skip
