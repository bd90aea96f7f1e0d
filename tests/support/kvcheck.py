"""
C{kvcheck}, run beside a test, and what it says.
"""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tests.support.daemon import PATIENCE

KVCHECK = (sys.executable, "-m", "kvserver.check")


class Answer:
    """
    What C{kvcheck --json} said.

    @ivar status: Its exit status.

    @ivar said: The document; empty if there is none.

    @ivar complaint: What it wrote to standard error.
    """

    def __init__(self, status: int, output: str, complaint: str) -> None:
        self.status = status
        self.said: dict[str, Any] = json.loads(output) if output else {}
        self.complaint = complaint

    def fault(self) -> tuple[str, int, int, int, int]:
        """
        The only fault: its kind, connection, line, offset and length.
        """
        assert self.said["fault_counts"] == {self.said["faults"][0]["kind"]: 1}
        (fault,) = self.said["faults"]
        return (
            *(fault["kind"], fault["connection"], fault["line"]),
            *(fault["offset"], fault["length"]),
        )

    def outcomes(self) -> dict[str, str]:
        """
        What became of each rule.
        """
        return {check["rule"]: check["outcome"] for check in self.said["checks"]}

    def detail(self, rule: str) -> str:
        """
        What is said of a rule.
        """
        (detail,) = [c["detail"] for c in self.said["checks"] if c["rule"] == rule]
        return str(detail)


def kvcheck(*arguments: object, seconds: float = 60) -> Answer:
    """
    Run it.
    """
    done = subprocess.run(
        [*KVCHECK, "--json", *map(str, arguments)], capture_output=True, text=True, timeout=seconds
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


class Started:
    """
    C{kvcheck --json} that runs beside the test. At the end of it, it is killed.
    """

    def __init__(self, *arguments: str) -> None:
        self._command = [*KVCHECK, "--json", *arguments]

    def begin(self) -> None:
        """
        Start it.
        """
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)

    def interrupt(self) -> Answer:
        """
        Ctrl-C.
        """
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> Answer:
        """
        Wait for its end.
        """
        output, _ = self.process.communicate(timeout=PATIENCE)
        return Answer(self.process.returncode, output, "")


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[Started]:
    """
    Something that can be started, and is killed.
    """
    run = Started(*arguments)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def at(port: int | str) -> str:
    """
    A target on this machine.
    """
    return f"tcp:127.0.0.1:{port}"
