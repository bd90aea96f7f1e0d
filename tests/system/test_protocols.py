"""
Protocols of one's own, by the real daemon, as the README shows them.
"""

import json
import os
import socket
from pathlib import Path

import pytest

from tests.support.clients import connect, receive
from tests.support.daemon import TWISTD, Daemon, environment
from tests.support.readme import block
from tests.support.wires import PROXY_V2, Authority, TLSClient
from tests.system.test_programs import Telnet
from tests.system.test_twistd import run

KV = "kvserver.examples.kv.KeyValueProtocol"
UNKNOWN = b"UNKNOWN COMMAND\r\n"


def test_example(tmp_path: Path) -> None:
    """
    The example, at a terminal: what the README shows, and what it does not know.
    """
    option = block(".venv/bin/twistd -n kvserver --protocol=").split()[-1]
    assert option == f"--protocol={KV}"
    with Daemon(tmp_path, "--port=0", option, answer=UNKNOWN) as daemon:
        _, *shown = block("$ telnet 127.0.0.1 4040\n    CREATE").split("\n")
        telnet = Telnet(daemon.port)
        commands = ("CREATE", "PUT", "GET", "DELETE")
        for line in filter(None, shown):
            if line.startswith(commands):
                telnet.types(line)
            else:
                telnet.sees(f"{line}\r\n")
        for command, answer in (
            ("GET shopping milk", "\r\nOK\r\n"),
            ("GET nowhere milk", "NOT FOUND\r\n"),
            ("PUT shopping", "UNKNOWN COMMAND\r\n"),
            ("", "UNKNOWN COMMAND\r\n"),
        ):
            telnet.types(command)
            telnet.sees(answer)
        telnet.quits()


def test_plugin(tmp_path: Path) -> None:
    """
    A plugin of one's own, as the README has it, found by twistd.
    """
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "shop_plugin.py").write_text(
        block("from twisted.application.service import ServiceMaker")
    )
    (tmp_path / "shop.py").write_text(block("from kvserver import tap"))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    env = environment(PYTHONPATH=path)
    with (
        Daemon(tmp_path, "--port=0", env=env, name="shop", answer=UNKNOWN) as daemon,
        connect(daemon.port) as client,
    ):
        client.sendall(b"CREATE shopping\n")
        assert receive(client, 4) == b"OK\r\n"


def test_everyWire(tmp_path: Path, authority: Authority) -> None:
    """
    It passes PROXY and TLS as the echo does, is limited, recorded, and measured by what it counts:
    nothing, if it does not say so.
    """
    certificate, key = authority.issue("localhost")
    log = tmp_path / "access.log"
    with Daemon(
        tmp_path,
        *("--listen", "tcp:0", "--listen", "proxy:tls:tcp:0"),
        *(f"--protocol={KV}", f"--access-log={log}"),
        *(f"--tls-certificate={certificate}", f"--tls-private-key={key}"),
        answer=UNKNOWN,
    ) as daemon:
        raw = connect(int(daemon.listening[1]))
        raw.sendall(PROXY_V2)
        with TLSClient(raw, authority.client()) as client:
            client.sendall(b"CREATE shopping\n" * 1000)
            client.shutdown(socket.SHUT_WR)
            assert receive(client, 1 << 20) == b"OK\r\n" * 1000
    *_, record = (json.loads(line) for line in log.read_text().splitlines())
    assert "lines" not in record
    assert (record["client"], record["tls"]) == ("192.0.2.1:1024", "TLSv1.3")
    assert (record["bytes_in"], record["bytes_out"]) == (16_000, 4_000)
    assert record["reason"] == "client_closed"


@pytest.mark.parametrize("name", ["nowhere.Echo", "json.loads", "echo"])
def test_notFound(tmp_path: Path, name: str) -> None:
    """
    What can't be served is one line, and a mistake on the command line.
    """
    arguments = ("-n", "--pidfile=", "kvserver", f"--protocol={name}")
    done = run(tmp_path, TWISTD, *arguments, env=environment())
    assert done.returncode == os.EX_USAGE
    assert done.stdout.startswith(f"kvserver: --protocol: '{name}' ")
    assert done.stdout.count("\n") == 1
