"""Reads OpenMetrics from standard input as its own parser does, which takes nothing that the format forbids.

    curl --header 'accept: application/openmetrics-text' localhost:9090/metrics | python3 tests/openmetrics/check.py

Prints how many samples there are, and how many of them have an exemplar. A fault ends it with exit code 1 and a sentence.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "deploy"))
import pypi

READ = """
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families

try:
    samples = [sample for family in text_string_to_metric_families(sys.stdin.read()) for sample in family.samples]
except ValueError as error:
    sys.exit(f"this is no OpenMetrics: {error}")
print(len(samples), "samples,", sum(sample.exemplar is not None for sample in samples), "exemplars")
"""


def main() -> int:
    """Hands standard input on to an environment that has the parser."""
    # Test suites that run side by side may all be the first to ask for it.
    with pypi.sole_run("openmetrics"):
        interpreter = pypi.virtual_environment(HERE / "requirements.txt")
    return subprocess.run([interpreter, "-c", READ], check=False).returncode


if __name__ == "__main__":
    pypi.main(main)
