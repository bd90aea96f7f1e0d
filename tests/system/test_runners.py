"""
How these tests are run.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.clients import slow
from tests.support.daemon import PATIENCE, SCRIPTS, environment

ROOT = Path(__file__).parents[2]

newTrial = pytest.mark.skipif(
    int(version("twisted").partition(".")[0]) < 24,
    reason="an old trial does not show what an import raises",
)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            (str(SCRIPTS / "trial"), "tests.unit.echo.test_protocol"),
            marks=[newTrial, pytest.mark.slow],
        ),
        pytest.param(
            (str(SCRIPTS / "trial"), "tests/unit/echo/test_protocol.py"),
            marks=[newTrial, pytest.mark.slow],
        ),
        pytest.param((str(SCRIPTS / "trial"), "tests"), marks=newTrial),
        pytest.param(
            (sys.executable, "-m", "twisted.trial", "tests"), marks=[newTrial, pytest.mark.slow]
        ),
        slow((sys.executable, "-m", "unittest", "tests.unit.echo.test_protocol")),
        (sys.executable, "-m", "unittest", "discover"),
    ],
    ids=" ".join,
)
def test_otherRunners(command: tuple[str, ...], tmp_path: Path) -> None:
    """
    trial and unittest, which would find no test, and so nothing wrong, fail, and say why.
    """
    for name in "tests", "kvserver":
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(tmp_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "kvserver's tests are written for pytest: run pytest\n" in done.stdout
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("plugins", [(), ("-p", "no:twisted")], ids=["twisted", "plain"])
def test_interruptIgnored(plugins: tuple[str, ...], tmp_path: Path) -> None:
    """
    pytest that was started with INT ignored starts daemons that take it.
    """
    trap = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    pytest = (sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider")
    done = subprocess.run(
        [
            *trap,
            *pytest,
            *plugins,
            f"--basetemp={tmp_path}/t",
            "tests/system/test_drain.py::test_atRest",
        ],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert done.returncode == 0, done.stdout
