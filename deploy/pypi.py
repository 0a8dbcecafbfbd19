"""Wheels out of the Python package index, pinned by sha256, for the scripts beside this file.

Standard library only: the scripts run on a bare Python 3.9 and bring what they need themselves.
Everything fetched or made is kept in one cache folder and is written atomically, so that an interrupted run
leaves nothing half done and a second run finds the work done.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


class SetupError(Exception):
    """Something the person at the keyboard can put right; the message says how."""


@dataclass(frozen=True)
class Pin:
    """One line of a requirements file: a package, its version and the digests that are accepted."""

    name: str
    version: str
    hashes: tuple[str, ...]

    def requirement(self) -> str:
        """The pin as pip reads it."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{digest}" for digest in self.hashes)])

    def wheel_pattern(self) -> str:
        """The glob that this pin's wheel files match: file names carry the package name with underscores."""
        return f"{re.sub(r'[-_.]+', '_', self.name)}-{self.version}-*.whl"


@dataclass(frozen=True)
class Platform:
    """The machine that a wheel is for, which need not be the machine that fetches it."""

    arch: str
    python: str
    glibc_tags: tuple[str, ...]

    def pip_arguments(self) -> list[str]:
        """pip's flags that choose this platform."""
        tags = [argument for tag in self.glibc_tags for argument in ("--platform", f"{tag}_{self.arch}")]
        abi = "cp" + self.python.replace(".", "")
        return [*tags, "--python-version", self.python, "--implementation", "cp", "--abi", abi, "--abi", "none"]


def cache_folder() -> Path:
    """`$ORTOLAN_CACHE`, else `.cache` in the repository."""
    return Path(os.environ.get("ORTOLAN_CACHE") or REPOSITORY / ".cache").absolute()


def say(message: str) -> None:
    """One line of progress, on stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def sha256(path: Path) -> str:
    """The file's digest in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of(data: bytes) -> str:
    """The digest of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_pins(requirements: Path) -> dict[str, Pin]:
    """The pins of a requirements file, by package name. Environment markers are pip's business and not read."""
    pins = {}
    for line in requirements.read_text().replace("\\\n", " ").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line):
            hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
            pins[match[1]] = Pin(match[1], match[2], hashes)
    return pins


def wheel(pin: Pin, platform: Platform | None = None) -> Path:
    """The pin's wheel in the cache, downloaded first if it is not there yet."""
    folder = cache_folder() / "wheels"
    if found := _kept_wheel(folder, pin, platform):
        return found
    say(f"downloading {pin.name} {pin.version}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(pin.requirement() + "\n")
        command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += ["--disable-pip-version-check", "--dest", scratch, "--requirement", str(requirements)]
        run([*command, *(platform.pip_arguments() if platform else [])], f"downloading {pin.name}")
        for path in Path(scratch).glob("*.whl"):
            path.replace(folder / path.name)
    if found := _kept_wheel(folder, pin, platform):
        return found
    raise SetupError(f"pip downloaded no wheel of {pin.name} {pin.version}")


def _kept_wheel(folder: Path, pin: Pin, platform: Platform | None) -> Path | None:
    # One digest list may cover several platforms, so the file name decides between them.
    for path in sorted(folder.glob(pin.wheel_pattern())):
        fits = platform is None or path.stem.endswith((platform.arch, "-any"))
        if fits and sha256(path) in pin.hashes:
            return path
    return None


def virtual_environment(requirements: Path) -> Path:
    """The interpreter of a virtual environment that holds exactly `requirements`, made on first use.

    Environments are kept by the digest of the requirements, so a changed pin makes a new one.
    """
    key = hashlib.sha256(f"{sys.version}\n{requirements.read_text()}".encode()).hexdigest()[:12]
    home = cache_folder() / "venvs" / f"{requirements.stem}-{key}"
    interpreter, complete = home / "bin" / "python", home / ".complete"
    if complete.exists():
        return interpreter
    _create_environment(home)
    say(f"installing what {requirements.name} lists")
    command = [str(interpreter), "-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary=:all:"]
    run([*command, "--disable-pip-version-check", "--requirement", str(requirements)], "installing packages")
    complete.touch()
    return interpreter


def _create_environment(home: Path) -> None:
    _require_venv_module()
    say(f"creating a virtual environment in {home}")
    shutil.rmtree(home, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(home)], "creating a virtual environment")


def _require_venv_module() -> None:
    # Debian's python3 has `venv` but not `ensurepip`, without which an environment has no pip.
    if importlib.util.find_spec("ensurepip"):
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "python3-venv"]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say("installing the Debian package python3-venv")
        run(["apt-get", "update", "--quiet"], "reading Debian's package lists")
        run(install, "installing python3-venv")
        return
    raise SetupError(f"Python's venv module is incomplete here; install it with: sudo {' '.join(install)}")


def _pip() -> list[str]:
    """A pip: this interpreter's own, else one in an environment of the cache."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    home = cache_folder() / "venvs" / f"pip-{sys.version_info.major}.{sys.version_info.minor}"
    if not (home / ".complete").exists():
        _create_environment(home)
        (home / ".complete").touch()
    return [str(home / "bin" / "python"), "-m", "pip"]


def run(command: Sequence[str], purpose: str, folder: Path | None = None) -> None:
    """Runs a command in silence, and shows what it said only if it failed."""
    result = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        raise SetupError(f"{purpose} failed\n$ {' '.join(command)}\n{result.stdout.strip()}")


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes the file beside its place and renames it: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(data)
    os.chmod(file.name, mode)
    os.replace(file.name, path)


@contextlib.contextmanager
def sole_run(name: str) -> Iterator[None]:
    """Waits for other runs of the same work on this cache, so that test suites may all ask for it at once."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(body: Callable[[], int]) -> None:
    """Runs a script's body and turns what a person can put right into a message instead of a trace."""
    try:
        sys.exit(body())
    except SetupError as error:
        sys.exit(f"error: {error}")
