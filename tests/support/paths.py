"""
What people put before an echo, and other echoes: how each is started, and which rules of the echo
contract it does not keep.
"""

import getpass
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clients import program
from tests.support.daemon import quietPort

_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
"""
Debian's nginx has no C{stream} of its own.
"""


@dataclass(frozen=True)
class Site:
    """
    What stands behind a path, and what a program that is started may use.

    @ivar folder: Takes its files.

    @ivar plain: The daemon's port.

    @ivar proxy: The daemon's port for connections that begin with a PROXY header.

    @ivar tls: The daemon's port for TLS.

    @ivar certificate: A certificate for C{localhost}, and its key in the same file.

    @ivar authority: Who issued it.
    """

    folder: Path
    plain: int
    proxy: int
    tls: int
    certificate: Path
    authority: Path

    def write(self, name: str, *lines: str) -> str:
        """
        Write a file.

        @return: Its path.
        """
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n")
        return str(path)


def haproxy(server: str, bind: str = "") -> Callable[[Site, int], list[list[str]]]:
    """
    HAProxy, as a relay of TCP.

    @param server: What it is told of the daemon.

    @param bind: What it is told of its own port.
    """

    def start(site: Site, port: int) -> list[list[str]]:
        path = site.write(
            "haproxy.cfg",
            *("global", " maxconn 3000", "defaults", " mode tcp"),
            *(" timeout connect 5s", " timeout client 60s", " timeout server 60s"),
            *("listen echo", f" bind 127.0.0.1:{port} {bind.format(site=site)}"),
            f" server s 127.0.0.1:{server.format(site=site)}",
        )
        return [[program("haproxy"), "-db", "-f", path]]

    return start


def nginx(server: str, listen: str = "") -> Callable[[Site, int], list[list[str]]]:
    """
    The C{stream} of nginx.

    @param server: What it is told of the daemon.

    @param listen: What it is told of its own port.
    """

    def start(site: Site, port: int) -> list[list[str]]:
        path = site.write(
            "nginx.conf",
            *([f"load_module {_MODULE};"] if _MODULE.exists() else []),
            *("daemon off;", f"pid {site.folder}/nginx.pid;", "error_log stderr crit;"),
            *("worker_rlimit_nofile 10000;", "events { worker_connections 5000; }"),
            f"stream {{ server {{ listen 127.0.0.1:{port} backlog=1024 {listen};",
            f"ssl_certificate {site.certificate}; ssl_certificate_key {site.certificate};"
            if "ssl" in listen
            else "",
            f"proxy_pass 127.0.0.1:{server.format(site=site)}; }} }}",
        )
        return [[program("nginx"), "-e", "stderr", "-c", path]]

    return start


def stunnel(site: Site, port: int) -> list[list[str]]:
    """
    stunnel takes TLS from the connection.
    """
    path = site.write(
        "stunnel.conf",
        *("foreground = quiet", "pid =", "syslog = no", "[echo]"),
        *(f"accept = 127.0.0.1:{port}", f"connect = 127.0.0.1:{site.plain}"),
        f"cert = {site.certificate}",
    )
    return [[program("stunnel4", "stunnel"), path]]


def stunnelClient(site: Site, port: int) -> list[list[str]]:
    """
    stunnel puts TLS around the connection.
    """
    path = site.write(
        "stunnel.conf",
        *("foreground = quiet", "pid =", "syslog = no", "client = yes", "[echo]"),
        *(f"accept = 127.0.0.1:{port}", f"connect = 127.0.0.1:{site.tls}"),
        *(f"CAfile = {site.authority}", "checkHost = localhost", "verifyChain = yes"),
    )
    return [[program("stunnel4", "stunnel"), path]]


def ssh(site: Site, port: int) -> list[list[str]]:
    """
    C{ssh -L}, to a server of its own.
    """
    there = quietPort()
    key, host = site.folder / "key", site.folder / "host"
    for file in key, host:
        command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
        subprocess.run(command, check=True)
    config = site.write(
        "sshd_config",
        *(f"ListenAddress 127.0.0.1:{there}", f"HostKey {host}", "StrictModes no"),
        *(f"AuthorizedKeysFile {key}.pub", "PasswordAuthentication no", "UsePAM no"),
        *("PermitRootLogin yes", f"PidFile {site.folder}/sshd.pid"),
    )
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    # The package would start a server of its own, so this is never required.
    if not Path(server).exists() or (os.geteuid() == 0 and not Path("/run/sshd").is_dir()):
        pytest.skip("needs the program sshd, and for root the folder /run/sshd")
    client = [program("ssh"), "-F", "none", "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{site.plain}"]
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes")
    for option in *options, "ConnectionAttempts=20":
        client += ["-o", option]
    client += ["-i", str(key), "-p", str(there), f"{getpass.getuser()}@127.0.0.1"]
    return [[server, "-D", "-e", "-f", config], client]


def socat(there: str) -> Callable[[Site, int], list[list[str]]]:
    """
    socat.

    @param there: Its second address.
    """

    def start(site: Site, port: int) -> list[list[str]]:
        here = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,backlog=1024"
        return [[program("socat"), "-t", "20", here, there.format(site=site)]]

    return start


def ncat(*options: str) -> Callable[[Site, int], list[list[str]]]:
    """
    ncat.

    @param options: What it does for each connection.
    """

    def start(site: Site, port: int) -> list[list[str]]:
        told = [option.format(site=site) for option in options]
        return [[program("ncat"), "-l", "-k", "-m", "2000", *told, "127.0.0.1", str(port)]]

    return start


def socketProxy(site: Site, port: int) -> list[list[str]]:
    """
    The relay of systemd.
    """
    activate = program("systemd-socket-activate")
    relay = "/lib/systemd/systemd-socket-proxyd"
    return [[activate, f"--listen=127.0.0.1:{port}", relay, f"127.0.0.1:{site.plain}"]]


def inetd(site: Site, port: int) -> list[list[str]]:
    """
    A process for each connection, as inetd starts it.
    """
    activate = program("systemd-socket-activate")
    return [[activate, f"--listen=127.0.0.1:{port}", "--accept", "--inetd", "cat"]]


def go(site: Site, port: int) -> list[list[str]]:
    """
    An echo in Go.
    """
    source = Path(__file__).parents[1] / "benchmark/peers/echo.go"
    echo = site.folder / "echo"
    subprocess.run([program("go"), "build", "-o", str(echo), str(source)], check=True)
    return [["env", f"PORT={port}", str(echo)]]


RELAYED = ("urgent", "client-address")
"""
What no program keeps that takes connections and makes others: it does not pass on what is urgent,
and the other end sees its address.
"""

CUT = ("half-close", "tail")

FORKED = ("connections", "long-50mb")


@dataclass(frozen=True)
class Way:
    """
    A path to the daemon, or another echo.

    @ivar start: What is to be started.

    @ivar fails: The rules that it breaks, each time.

    @ivar varies: The rules that are not tried, since their outcome depends on chance, or on how
        many processes the machine bears.

    @ivar isTLS: Is it connected to by TLS?

    @ivar isEcho: Is it an echo itself?
    """

    start: Callable[[Site, int], list[list[str]]]
    fails: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    isTLS: bool = False
    isEcho: bool = False

    def outcome(self, rule: str) -> str:
        """
        What becomes of a rule.
        """
        if (rule == "urgent" and self.isTLS) or (
            rule in ("reset", "client-address") and self.isEcho
        ):
            return "cannot be told"
        return "FAILS" if rule in self.fails else "ok"


WAYS = {
    "haproxy": Way(haproxy("{site.plain}"), RELAYED),
    "haproxy PROXY v1": Way(haproxy("{site.proxy} send-proxy"), ("urgent",)),
    "haproxy PROXY v2": Way(haproxy("{site.proxy} send-proxy-v2"), ("urgent",)),
    "haproxy TLS": Way(
        haproxy("{site.proxy} send-proxy-v2", "ssl crt {site.certificate}"), isTLS=True
    ),
    "nginx": Way(nginx("{site.plain}"), (*RELAYED, *CUT, "reset")),
    "nginx PROXY v1": Way(nginx("{site.proxy}; proxy_protocol on"), ("urgent", *CUT, "reset")),
    "nginx TLS": Way(
        nginx("{site.plain}", "ssl"),
        ("client-address", "tail", "reset"),
        # On a busy machine nginx may pass on all in each of 20 tries.
        ("half-close",),
        isTLS=True,
    ),
    "nginx half-close": Way(nginx("{site.plain}; proxy_half_close on"), (*RELAYED, "reset")),
    "stunnel": Way(stunnel, ("client-address", "reset"), isTLS=True),
    "stunnel client": Way(stunnelClient, (*RELAYED, "reset")),
    "ssh -L": Way(ssh, (*RELAYED, "reset")),
    "socat": Way(socat("TCP:127.0.0.1:{site.plain}"), (*RELAYED, "reset"), FORKED),
    "systemd-socket-proxyd": Way(socketProxy, (*RELAYED, *CUT, "reset", "connections")),
    "ncat -e cat": Way(
        ncat("-e", "/bin/cat"),
        ("early", *CUT, "urgent"),
        (*FORKED, "long-1mb", "slow-reader"),
        isEcho=True,
    ),
    "socat EXEC:cat": Way(socat("EXEC:cat"), ("early", "urgent"), FORKED, isEcho=True),
    "inetd cat": Way(inetd, ("early", "urgent"), FORKED, isEcho=True),
    "Go": Way(go, ("urgent",), isEcho=True),
}
"""
All that is tried: the table in the manual's chapter on kvcheck.
"""
