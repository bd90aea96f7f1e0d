"""
That the benchmark runs; what it measures is no test.
"""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmark.servers import missing
from tests.support.clients import program, skip

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    """
    It measures the daemon and its peers, and writes tables and a chart.
    """
    program("cc")
    if what := missing():
        skip(f"needs {what}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmark", "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0
    # Once for each workload, and for the server itself.
    for server in "kvserver", "asyncio protocol":
        assert done.stdout.count(f"\n{server} ") == 13
    # Without TLS: what Twisted's needs is not installed by --quick.
    for server in "Twisted LineReceiver", "C epoll":
        assert done.stdout.count(f"\n{server} ") == 9
    assert "memory of a connection that is held" in done.stdout
    assert (tmp_path / "results.rst").read_text() in done.stdout
    assert ElementTree.parse(tmp_path / "results.svg").getroot().tag.endswith("svg")
