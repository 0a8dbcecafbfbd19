"""What the model does without a server, on the server's core: a bare session loop, and the perfect Python loop."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import tools, usage
from .usage import Use
from .workloads import Workload


@dataclass(frozen=True)
class Bucket:
    """One batch size."""

    samples: int
    per_second: float
    p50_ms: float


@dataclass(frozen=True)
class Bare:
    """The buckets that were measured, and the memory of the process with nothing but the session in it."""

    buckets: dict[int, Bucket]
    loaded_bytes: int
    # From the start of the program to its end.
    use: Use

    @property
    def best(self) -> Bucket:
        """The bucket with the most samples a second, by its median run: a disturbance of one bucket must not decide."""
        return max(self.buckets.values(), key=lambda bucket: bucket.samples / bucket.p50_ms)


def session_loop(
    binary: Path, workload: Workload, sizes: Sequence[int], seconds: float, core: int, *, huge_pages: bool = False
) -> Bare:
    """`inference-pod bench`, for `seconds` at each batch size; its memory as ONNX Runtime leaves it, or in huge pages."""
    listed, whole = ",".join(map(str, sizes)), max(1, round(seconds))
    command = [binary, "bench", workload.path, "--batch-sizes", listed, "--seconds", whole, "--threads", "1", "--json"]
    command += [word for shape in workload.shapes for word in ("--shape", shape)]
    command += [] if huge_pages else ["--plain"]
    with usage.Usage(usage.children_seconds, core) as used:
        found = tools.output_json(tools.as_model(core, command), environment())
    buckets = {
        bucket["samples"]: Bucket(bucket["samples"], bucket["samples_per_second"], bucket["p50_ms"])
        for bucket in found["buckets"]
    }
    return Bare(buckets, found["memory"]["loaded_bytes"], used.whole())


def simulated(
    binary: Path, workload: Workload, arrivals: Path, times: Mapping[int, float], core: int
) -> dict[str, float] | None:
    """What the scheduler makes of these arrivals in virtual time, with these milliseconds for each batch size: p50_ms,
    p99_ms. Where none are given, with those of the bare loop. None where a build cannot tell.
    """
    command = [binary, "bench", workload.path, "--arrivals", arrivals, "--threads", "1", "--json"]
    command += ["--batch-sizes", ",".join(map(str, workload.sizes))]
    if times:
        given = ",".join(f"{samples}={millis:.4f}" for samples, millis in times.items())
        command += ["--seconds", "0", "--times", given]
    command += [word for shape in workload.shapes for word in ("--shape", shape)]
    try:
        return tools.output_json(tools.pinned(core, command), environment()).get("simulated")
    except tools.SetupError as error:
        # A build without the flag names it; any other failure is one.
        if "unexpected argument '--" in str(error):
            return None
        raise


def python_loop(task: str, *arguments: Path | float, core: int) -> dict[str, float]:
    """The perfect Python loop; see python_loop.py."""
    command = [tools.python(), Path(__file__).with_name("python_loop.py"), task, *arguments]
    with usage.Usage(usage.children_seconds, core) as used:
        found = tools.output_json(tools.as_model(core, command))
    return found | {"cpu": used.whole().cpu, "steal": used.whole().steal}


def environment() -> dict[str, str]:
    """Where the library is found, and that it tells nobody."""
    library = tools.cache_folder() / "onnxruntime" / "lib" / "libonnxruntime.so"
    return os.environ | {"ORT_DYLIB_PATH": str(library), "ORT_DISABLE_TELEMETRY": "1"}
