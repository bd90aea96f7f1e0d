"""
What people type: telnet, nc, ncat, socat.
"""

import os
import pty
import subprocess
import time

import pytest

from tests.clients import LINES, program
from tests.daemon import PATIENCE, Daemon, environment


class Telnet:
    """
    A person at a terminal, with telnet.
    """

    def __init__(self, port: int) -> None:
        """
        @param port: The port on 127.0.0.1 to connect to.
        """
        self._terminal, end = pty.openpty()
        self._process = subprocess.Popen(
            [program("telnet"), "127.0.0.1", str(port)],
            stdin=end,
            stdout=end,
            stderr=end,
            env=environment(LC_ALL="C"),
            start_new_session=True,
        )
        os.close(end)
        self.screen = ""
        self.sees("Escape character is '^]'.\r\n")

    def types(self, text: str) -> None:
        """
        Type a line.
        """
        os.write(self._terminal, text.encode() + b"\r")

    def sees(self, text: str) -> None:
        """
        Wait until this is what has come on the screen since the last look.
        """
        deadline = time.monotonic() + PATIENCE
        os.set_blocking(self._terminal, False)
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.screen!r}"
            try:
                self.screen += os.read(self._terminal, 4096).decode()
            except BlockingIOError:
                time.sleep(0.005)
        _, _, self.screen = self.screen.partition(text)

    def says(self, text: str) -> None:
        """
        Type a line, see it typed, and see it come back.
        """
        self.types(text)
        self.sees(f"{text}\r\n{text}\r\n")

    def quits(self) -> None:
        """
        Escape, and quit.
        """
        os.write(self._terminal, b"\x1d")
        self.sees("telnet> ")
        self.types("quit")
        assert self._process.wait(PATIENCE) == 0
        os.close(self._terminal)


def run(command: list[str], text: bytes) -> bytes:
    """
    What a program prints, when this is its standard input.
    """
    return subprocess.run(
        command, input=text, stdout=subprocess.PIPE, timeout=PATIENCE, check=True
    ).stdout


def test_telnetSessions(daemon: Daemon) -> None:
    """
    The sessions of the guide: one client; two at once; one that quits without disturbing the other.
    """
    first = Telnet(daemon.port)
    first.says("hello")
    first.says("is it me")
    second = Telnet(daemon.port)
    second.says("hello?")
    first.says("you are looking for?")
    second.says("HELLOOOOOO?")
    second.quits()
    first.says("still here")
    first.quits()


@pytest.mark.parametrize("text", [LINES, b"hello\n", b"hello"], ids=["seq", "line", "tail"])
def test_nc(daemon: Daemon, text: bytes) -> None:
    """
    C{nc -N}, which sends FIN after its input, gets everything back: 20 times of 20.
    """
    command = [program("nc.openbsd", "nc"), "-N", "127.0.0.1", str(daemon.port)]
    lost = [number for number in range(20) if run(command, text) != text]
    assert lost == []


def test_ncat(daemon: Daemon) -> None:
    """
    Nmap's netcat sends FIN by itself.
    """
    assert run([program("ncat"), "127.0.0.1", str(daemon.port)], LINES) == LINES


def test_socat(daemon: Daemon) -> None:
    """
    socat sends FIN, and then waits up to C{-t} seconds for the rest.
    """
    address = f"TCP:127.0.0.1:{daemon.port}"
    assert run([program("socat"), "-t", str(PATIENCE), "-", address], LINES) == LINES
