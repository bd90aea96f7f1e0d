"""
What people put before an echo, and other echoes: how each is started, and which rules of the echo
contract it does not keep.
"""

import getpass
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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
    for path in key, host:
        command = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(command, check=True)
    path = site.write(
        "sshd_config",
        *(f"ListenAddress 127.0.0.1:{there}", f"HostKey {host}", "StrictModes no"),
        *(f"AuthorizedKeysFile {key}.pub", "PasswordAuthentication no", "UsePAM no"),
        *("PermitRootLogin yes", f"PidFile {site.folder}/sshd.pid"),
    )
    client = [program("ssh"), "-F", "none", "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{site.plain}"]
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes")
    for option in *options, "ConnectionAttempts=20":
        client += ["-o", option]
    client += ["-i", str(key), "-p", str(there), f"{getpass.getuser()}@127.0.0.1"]
    return [[shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", path], client]


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
