"""
The image, built and run as the manual says. Nothing comes from a registry of images: Debian's
Python stands in for the base.

This takes root, mmdebstrap, podman and runc, and the network for Debian's packages and PyPI's.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvserver.supervision.orphans import INTERVAL
from tests.support.clients import LINES, ask, connect, exchange, program, receive, skip
from tests.support.daemon import environment, waitFor
from tests.support.documents import MANUAL, ROOT, block, paste
from tests.support.wires import Authority, TLSClient

pytestmark = pytest.mark.slow

CHAPTER = MANUAL / "containers.rst"

SUITE = "bookworm"
"""
The release of Debian that the base is made of.
"""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""
The authorities that Debian trusts.
"""

BASES = re.findall(
    r"docker\.io/[\w./:-]+\w",
    (ROOT / "kvserver/deploy/Containerfile").read_text() + CHAPTER.read_text(),
)
"""
The names that the base goes by.
"""

CLONE_NEWNET = 0x40000000
"""
For unshare(2) and setns(2): the network.
"""

LIMIT = 200_000_000
"""
The most that the image may have in addition to its base, in bytes.
"""

SETTINGS = """\
[containers]
netns = "host"
log_driver = "k8s-file"
# Those of podman may be more than root has here.
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
"""

STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


class Podman:
    """
    Podman, with a storage of its own.
    """

    def __init__(self, folder: Path) -> None:
        """
        @param folder: Is on a file system that overlays may be on.
        """
        (folder / "containers.conf").write_text(SETTINGS.format(folder=folder))
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
        self._environment = environment(
            CONTAINERS_CONF=f"{folder}/containers.conf",
            CONTAINERS_STORAGE_CONF=f"{folder}/storage.conf",
            # Needs no control groups, and no network of its own.
            BUILDAH_ISOLATION="chroot",
        )
        self.checkout = folder / "checkout"
        self.checkout.mkdir()
        for name in "kvserver", "twisted":
            ignore = shutil.ignore_patterns("__pycache__", "dropin.cache")
            shutil.copytree(ROOT / name, self.checkout / name, ignore=ignore)
        for name in "setup.py", "setup.cfg", "README.rst", "LICENSE":
            shutil.copy(ROOT / name, self.checkout)

    def shell(self, script: str) -> str:
        """
        Run a script in the checkout, as it would be pasted.

        @return: What it prints.
        """
        return paste(script, "-euo", "pipefail", folder=self.checkout, env=self._environment)

    def waitForLog(self, name: str, text: str) -> None:
        """
        Wait until a container has logged this.
        """
        waitFor(lambda: text in self.shell(f"podman logs {name}"), f"{text!r} in {name}'s log")


@contextlib.contextmanager
def ownNetwork() -> Iterator[None]:
    """
    A network for this test alone: the manual's ports are free there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET):
            skip("needs a network namespace of its own")
        try:
            subprocess.run([program("ip"), "link", "set", "lo", "up"], check=True)
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


@contextlib.contextmanager
def built() -> Iterator[Podman]:
    """
    Podman, with the image that the manual's command has built.
    """
    if os.getuid():
        skip("needs root, for mmdebstrap and podman")
    program("podman")
    program("runc")
    # Pytest's own folders are kept, and may be in memory.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        podman = Podman(Path(folder))
        debian = [
            *(program("mmdebstrap"), "--quiet", "--variant=extract"),
            "--include=base-files,dash,python3,python3-venv",
            # What this machine trusts when pip asks PyPI, the image trusts when it is built.
            f"--extract-hook=upload {CERTIFICATES.resolve()} {CERTIFICATES}",
            *(SUITE, f"{folder}/base.tar"),
        ]
        subprocess.run(debian, check=True)
        podman.shell(f"podman import --quiet {folder}/base.tar base")
        for name in BASES:
            podman.shell(f"podman tag base {name}")
        podman.shell(block("podman build -f"))
        try:
            yield podman
        finally:
            podman.shell("podman rm --all --force --time=1")


def doesAsTheManualSays(podman: Podman) -> None:
    """
    Paste what the manual shows.
    """
    podman.shell(block("podman build --build-arg BASE"))
    podman.shell(block("podman run -d --name kvserver "))
    podman.waitForLog("kvserver", "Accepting connections on port 4040")
    printed = podman.shell(block("podman run --rm"))
    assert "result: ok" in printed
    printed = podman.shell(block("seq 1 5"))
    assert printed.startswith("1\n2\n3\n4\n5\n")
    assert "Received SIGTERM" not in printed
    assert podman.shell("podman inspect --format={{.State.ExitCode}} kvserver") == "0\n"
    podman.shell(block("mkdir -p tls"))
    podman.waitForLog("kvserver-tls", "Accepting connections on port 4443")
    context = ssl.create_default_context(cafile=podman.checkout / "tls/server.pem")
    with TLSClient(connect(4443), context) as client:
        assert ask(client, b"hello\n") == b"hello\n"
    podman.shell("podman kill --signal=HUP kvserver-tls")
    podman.waitForLog("kvserver-tls", "Received SIGHUP: reloading")
    podman.shell("podman rm --all --force --time=1")


def needsNothing(podman: Podman, authority: Authority) -> None:
    """
    Run it with as little as there can be.
    """
    for path in authority.issue("localhost"):
        # Whoever runs the container may read them.
        Path(shutil.copy(path, podman.checkout)).chmod(0o644)
    podman.shell(
        "podman run -d --name shut-in --read-only --read-only-tmpfs=false --cap-drop=all"
        " --security-opt=no-new-privileges --user=12345:23456 --stop-timeout=60"
        " -v /dev/null:/bin/sh:ro -v $PWD:/tls:ro kvserver --workers=2 --metrics=tcp:9464"
        " --listen=tcp:4040 --listen=tls:tcp:4443"
        " --tls-certificate=/tls/localhost.pem --tls-private-key=/tls/localhost.key"
    )
    podman.waitForLog("shut-in", "Accepting connections on port 4443")
    logged = podman.shell("podman logs shut-in")
    assert not re.search("cache|warn|unable|fail|error|Traceback", logged, re.IGNORECASE)
    (state,) = json.loads(podman.shell("podman inspect shut-in"))
    pid = state["State"]["Pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^NSpid:.*\s1$", status, re.MULTILINE)
    assert re.search(r"^Uid:\s+12345\s+12345\s+12345\s+12345$", status, re.MULTILINE)
    assert re.search(r"^Gid:\s+23456\s+23456\s+23456\s+23456$", status, re.MULTILINE)
    for kind in "Inh", "Prm", "Eff", "Bnd", "Amb":
        assert re.search(rf"^Cap{kind}:\s+0+$", status, re.MULTILINE)
    with pytest.raises(AssertionError, match="denied"):
        podman.shell("podman exec shut-in /bin/sh -c true")

    with connect(4040) as client:
        assert exchange(client, [LINES]) == LINES
    with TLSClient(connect(4443), authority.client()) as secret:
        assert ask(secret, b"hello\n") == b"hello\n"
    for page, answer in ("healthz", b"alive\n"), ("readyz", b"ready\n"):
        with urllib.request.urlopen(f"http://127.0.0.1:9464/{page}", timeout=10) as response:
            assert response.read() == answer

    def children() -> list[str]:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    assert len(children()) == 2
    podman.shell("podman exec shut-in /opt/kvserver/bin/python3 -c 'import os; os.fork()'")
    waitFor(lambda: len(children()) == 2, "the orphan is gone", patience=3 * INTERVAL)

    with connect(4040) as idle:
        assert ask(idle, b"hello\n") == b"hello\n"
        podman.shell("podman kill --signal=TERM shut-in")
        assert receive(idle, 1) == b""
    assert podman.shell("podman wait shut-in") == "0\n"


def test_image(authority: Authority) -> None:
    """
    The manual's commands build it and run it. Any user may run it, as process 1, without a
    capability, a shell or a file that can be written: it logs nothing but that it listens, serves
    from two workers, waits for orphans, and drains when it is stopped. It is not much larger than
    its base.
    """
    with built() as podman, ownNetwork():
        doesAsTheManualSays(podman)
        needsNothing(podman, authority)
        printed = podman.shell("podman inspect --type=image --format={{.Size}} kvserver base")
        image, base = map(int, printed.split())
        assert image - base < LIMIT
