"""
The command C{kvserver}, and where it differs from C{twistd -n kvserver}. (What both promise when
they can't start, and when nobody reads their log, is tested with twistd.)
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, stick
from tests.support.daemon import COMMAND, PATIENCE, STARTS, TWISTD, Daemon, environment
from tests.support.sabotage import Sabotaged


def test_json(tmp_path: Path) -> None:
    """
    Each line of the log is an object, in which the record of a connection is one, too. Nothing else
    is written. TERM drains, a second one stops at once, and the process dies of it.
    """
    options = ("--port=0", "--log-format=json", "--log-level=debug", "--access-log=-")
    with Daemon(tmp_path, *options, command=COMMAND, name="") as daemon:
        with connect(daemon.port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
        with connect(daemon.port) as client:
            stick(client)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.waitForLog("Draining ")
            assert daemon.stop(signal.SIGTERM) == -signal.SIGTERM
        assert os.listdir(tmp_path) == [daemon.log.name]
        events = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert events[0]["message"].startswith("kvserver ")
    records = [event["record"] for event in events if "record" in event]
    assert [record["reason"] for record in records][1:] == ["client_closed", "aborted"]
    assert {"debug", "info", "warn"} == {event["level"] for event in events}


def test_givesUp(tmp_path: Path) -> None:
    """
    More faults than there may be end the process with status 1; the log says why.
    """
    with Sabotaged(tmp_path, "--port=0", command=COMMAND, name="") as daemon:
        for number in range(1, 5):
            daemon.sabotage("shutdown")
            if number < 4:
                daemon.waitForLog("Accepting connections", number + 1)
        assert daemon.process.wait(PATIENCE) == 1
        assert daemon.logs("#critical] More than 3 restarts in 5.0 s: giving up.") == 1


def test_workers(tmp_path: Path) -> None:
    """
    Workers serve; a traceback of one is a line of JSON as well.
    """
    options = ("--port=0", "--workers=2", "--log-format=json")
    with Daemon(tmp_path, *options, command=COMMAND, name="") as daemon:
        first, *_ = daemon.workers()
        os.kill(first, signal.SIGABRT)
        daemon.waitForLog("SIGABRT")
        assert daemon.stop() == -signal.SIGTERM
        events = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert any("Fatal Python error" in event["message"] for event in events)


def shows(*command: str) -> list[str]:
    """
    The lines that a command shows, and nothing else.
    """
    done = subprocess.run(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("command", STARTS)
def test_help(command: tuple[str, ...]) -> None:
    """
    C{-h} shows the help, also that of the plugin, whose text but for the synopsis is the same: only
    the command has options for the log.
    """
    synopsis, *shown = shows(*command, "-h")
    assert synopsis.startswith("Usage: ")
    assert synopsis.endswith("kvserver [options]")
    _, *expected = shows(*COMMAND, "--help")
    missing = [line for line in expected if line not in shown]
    assert (missing == []) == (command == COMMAND)
    assert all("log" in line or line.startswith(" " * 26) for line in missing)
    assert [line for line in shown if line not in expected] == []


def test_whereOptionsGo() -> None:
    """
    An option of ours that twistd gets is twistd's affair. Among what it shows then is where ours
    go.
    """
    done = subprocess.run(
        [TWISTD, "-n", "--port", "4041", "kvserver"],
        env=environment(COLUMNS="120"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:1] == ["kvserver"])
    assert line.endswith("A TCP line echo daemon. Its options follow its name.")
