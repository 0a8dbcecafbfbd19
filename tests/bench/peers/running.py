"""A server process with everything it starts: begun on one core, waited for, weighed and ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_SECONDS = 120
STOP_TIMEOUT_SECONDS = 10
LOG_END_BYTES = 4000
SHARED_MEMORY = Path("/dev/shm")


class StartError(Exception):
    """A server did not come to answer; the message ends with the end of its log."""


# In the environment of all that a server starts, so that it is known even when its parents are gone.
MARK = "BENCH_RUN"


@dataclass(frozen=True)
class Command:
    """How a server is started."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Question:
    """A prediction as it is sent, and how to tell whether its answer is right."""

    url: str
    body: bytes
    is_right: Callable[[bytes], bool]
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


class Running:
    """A server that has answered. Ends with `stop`, or at the end of a `with`."""

    def __init__(self, command: Command, question: Question, core: int, log: Path) -> None:
        self.url, self.body, self.headers, self.check = (
            question.url,
            question.body,
            question.headers,
            question.is_right,
        )
        self.log, self._mark, self._shared_memory = log, uuid.uuid4().hex, set[Path]()
        started = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command.arguments],
                env={**command.environment, MARK: self._mark}, cwd=command.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            self._wait_for_answer(started + START_TIMEOUT_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - started
        self._shared_memory = shared_memory_of(self._members())

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, timeout: float = 30) -> bytes:
        """The answer to one prediction."""
        request = urllib.request.Request(self.url, self.body, dict(self.headers))
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    def answers(self, timeout: float = 30) -> bool:
        """Whether one prediction is answered, and rightly."""
        try:
            return self.check(self.ask(timeout))
        except (OSError, http.client.HTTPException):
            return False

    def pss(self) -> int:
        """Proportional set size of the process and all it started, in bytes."""
        return sum(pss_of(pid) for pid in self._members())

    def cpu_seconds(self) -> float:
        """Processor time that the process and all it started have had."""
        fields = (stat_of(pid) for pid in self._members())
        return sum(int(field[11]) + int(field[12]) for field in fields if field) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """TERM to the group, KILL to what is left after a while. Nothing of the server remains."""
        members = self._members()
        self._shared_memory |= shared_memory_of(members)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_TIMEOUT_SECONDS
        while (left := self._alive(members)) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for path in self._shared_memory:
            path.unlink(missing_ok=True)

    def log_end(self) -> str:
        """The last lines that the server wrote."""
        return self.log.read_bytes()[-LOG_END_BYTES:].decode(errors="replace").strip()

    def _wait_for_answer(self, end: float) -> None:
        trouble = "no answer"
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise StartError(f"the server ended with {self._process.returncode}\n{self.log_end()}")
            try:
                answer = self.ask()
            except urllib.error.HTTPError as error:
                trouble = f"{error.code}: {error.read()[:500].decode(errors='replace')}"
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error)
            else:
                if self.check(answer):
                    return
                raise StartError(f"a wrong answer: {answer[:500].decode(errors='replace')}\n{self.log_end()}")
            time.sleep(0.005)
        raise StartError(f"not ready after {START_TIMEOUT_SECONDS} s ({trouble})\n{self.log_end()}")

    def _members(self) -> set[int]:
        # By descent, and by the mark for those whose parents are gone. Some rename themselves over their environment.
        members = {self._process.pid}
        table = dict(processes())
        members |= {pid for pid in table if is_marked(pid, f"{MARK}={self._mark}".encode())}
        while found := {pid for pid, parent in table.items() if pid not in members and parent in members}:
            members |= found
        return members

    def _alive(self, members: set[int]) -> set[int]:
        self._process.poll()
        return {pid for pid in members | self._members() if Path(f"/proc/{pid}").exists() and not is_zombie(pid)}


def processes() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := stat_of(int(folder.name))):
            yield int(folder.name), int(fields[1])


def is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def shared_memory_of(pids: set[int]) -> set[Path]:
    """The files of /dev/shm that these processes have mapped: what a killed process leaves behind."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            found |= {line.partition(f"{SHARED_MEMORY}/")[2] for line in lines}
    return {SHARED_MEMORY / name for name in found if name and not name.endswith(" (deleted)")}


def is_zombie(pid: int) -> bool:
    fields = stat_of(pid)
    return not fields or fields[0] == "Z"


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where the process has gone."""
    try:
        # The name before them may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def pss_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
