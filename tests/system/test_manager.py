"""
What the service manager hears of the real daemon.
"""

import re
import signal
from pathlib import Path

from tests.support.clients import ask, connect
from tests.support.daemon import Daemon, environment
from tests.support.manager import Ear


def test_daemon(ear: Ear, tmp_path: Path) -> None:
    """
    READY, the status, the watchdog, RELOADING, STOPPING.
    """
    env = environment(NOTIFY_SOCKET=ear.address, WATCHDOG_USEC="1000000")
    with Daemon(tmp_path, env=env) as daemon:
        assert ear.hear() == "READY=1"
        # The daemon has served a line before the test begins.
        assert re.fullmatch(r"STATUS=(0 connections|1 connection), [01] lines served", ear.hear())
        assert [ear.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3
        daemon.process.send_signal(signal.SIGHUP)
        heard = [ear.hear()]
        while heard[-1] != "READY=1":
            heard.append(ear.hear())
        assert heard[-2].startswith("RELOADING=1\nMONOTONIC_USEC=")
        with connect(daemon.port) as client:
            assert ask(client, b"1\n2\n3\n") == b"1\n2\n3\n"
            while not heard[-1].startswith("STATUS="):
                heard.append(ear.hear())
            assert heard[-1] == "STATUS=1 connection, 4 lines served"
        daemon.stop()
        assert ear.heard()[-1] == "STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000"
