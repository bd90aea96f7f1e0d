"""
Two kvservers in one process, as somebody's C{.tac} embeds them: the one that the README shows.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import ask, connect, receive, stick
from tests.support.daemon import PATIENCE, TWISTD, quietPort, waitFor
from tests.support.documents import block
from tests.support.sabotage import Sabotaged

OPTIONS = ("--no_save",)
"""
Of C{twistd}, after the C{.tac}: one that changes nothing.
"""


class Two(Sabotaged):
    """
    The process of the C{.tac}.

    @ivar ports: Where the two listen.
    """

    def __init__(self, folder: Path, ports: list[int], text: str) -> None:
        self.ports = ports
        tac = folder / "two.tac"
        tac.write_text(text)
        command = (TWISTD, "-n", "--pidfile=", "--python")
        super().__init__(folder, *OPTIONS, command=command, name=str(tac))

    def _listening(self, count: int) -> list[str]:
        return super()._listening(len(self.ports))


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    """
    It runs, at ports of its own, with more time for the drain than a test has.
    """
    ports = [quietPort(), quietPort()]
    text = block("from twisted.application.service import Application")
    for shown, port in zip(("4040", "4041"), ports, strict=True):
        assert text.count(shown) == 1
        text = text.replace(shown, str(port))
    text = text.replace("parseOptions([", 'parseOptions(["--drain-timeout=60", ')
    with Two(tmp_path, ports, text) as two:
        yield two


def test_bothEcho(two: Two) -> None:
    """
    Both answer, and end with one TERM.
    """
    for port in two.ports:
        with connect(port) as client:
            assert ask(client, b"hello\n") == b"hello\n"
    assert two.stop() == -signal.SIGTERM
    assert two.logs("Traceback") == 0


def test_hangUp(two: Two, tmp_path: Path) -> None:
    """
    HUP opens the access logs of both again.
    """
    logs = [tmp_path / f"{port}.log" for port in two.ports]
    for log in logs:
        log.rename(log.with_suffix(".1"))
    two.process.send_signal(signal.SIGHUP)
    for log in logs:
        waitFor(log.exists, f"{log} is opened again")
    assert two.logs("Received SIGHUP") == 1


def test_drain(two: Two) -> None:
    """
    TERM drains both: what was begun is ended.
    """
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for port in two.ports]
        for client in clients:
            client.sendall(b"hel")
        waitFor(lambda: two.descriptors() == two.idleDescriptors + 2, "both are accepted")
        two.process.send_signal(signal.SIGTERM)
        two.waitForLog("SIGTERM")
        for client in clients:
            client.sendall(b"lo\n")
            assert receive(client, 6) == b"hello\n"
            assert client.recv(1) == b""
        assert two.process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_secondSignal(two: Two, second: signal.Signals) -> None:
    """
    A second signal resets those who are left on both.
    """
    with contextlib.ExitStack() as stack:
        for port in two.ports:
            stick(stack.enter_context(connect(port)))
        two.process.send_signal(signal.SIGTERM)
        two.waitForLog("SIGTERM")
        assert two.process.poll() is None
        two.process.send_signal(second)
        assert two.process.wait(PATIENCE) == -signal.SIGTERM
    assert two.logs("still busy at the end of the drain") == 2


def test_givesUp(two: Two) -> None:
    """
    When one gives up, the other is drained, and the process ends with status 1.
    """
    with connect(two.ports[0]) as client:
        assert ask(client, b"hello\n") == b"hello\n"
        client.sendall(b"hel")
        for number in range(1, 5):
            two.sabotage("shutdown")
            if number < 4:
                two.waitForLog("Accepting connections", len(two.ports) + number)
        two.waitForLog("More than 3 restarts in 5.0 s")
        client.sendall(b"lo\n")
        assert receive(client, 6) == b"hello\n"
        assert two.process.wait(PATIENCE) == 1
    assert two.logs(f"tcp:{two.ports[1]} died, and is restarted") == 3
