"""
Boots a throw-away container, with systemd in it, and runs the tests L{tests.systemd.units} there.
Arguments are those of pytest: C{python -m tests.systemd -k combined}.

The container is this machine over again: what is written there goes to an overlay, and is gone
afterwards. It has a network of its own, with nothing but loopback. It takes root, overlayfs and
C{systemd-nspawn}; the Python that runs this must have the tests' dependencies.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.support.daemon import waitFor

CHECKOUT = Path(__file__).parents[2]

COPY = Path("/srv/kvserver")
"""
Where the copy of the checkout is, in the container.
"""

WHEELS = Path("/srv/wheels")
"""
Where, in the container, pip finds what it would else look for on the network.
"""

LIMIT = 900
"""
When the tests are ended if they have not ended by themselves, in seconds.
"""

NAME = "tests-of-kvserver.service"
"""
The unit that runs the tests. C{systemctl stop 'kvserver*'} must not stop it.
"""

UNIT = f"""
[Unit]
Description=Tests of the units of kvserver
After=systemd-journald.service
SuccessAction=poweroff
FailureAction=poweroff

[Service]
Type=oneshot
TimeoutStartSec={LIMIT}
WorkingDirectory={COPY}
Environment=PIP_NO_INDEX=1 PIP_FIND_LINKS={WHEELS} PIP_DISABLE_PIP_VERSION_CHECK=1
Environment=KVSERVER_REQUIRE_PROGRAMS=1
StandardOutput=append:/srv/output
StandardError=inherit
ExecStart={sys.executable} -m pytest -n 0 -p no:cacheprovider --durations=5 \\
    tests/systemd/units.py {shlex.join(sys.argv[1:])}
ExecStartPost=/usr/bin/touch /srv/passed
ExecStopPost=/bin/sh -c '[ -e /srv/passed ] || journalctl --no-pager --lines=200'
"""


@contextlib.contextmanager
def root() -> Iterator[Path]:
    """
    The root of the container.
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        root, upper, work = (Path(scratch, name) for name in ("root", "upper", "work"))
        for folder in root, upper, work:
            folder.mkdir()
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, root], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", "--recursive", root], check=True)


def isEmptied(group: Path) -> bool:
    """
    End what is still in a control group, if the container had to be ended. Is there nothing left?
    """
    left = (group / "cgroup.procs").read_text().split()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return not left


@contextlib.contextmanager
def cgroups() -> Iterator[list[Path]]:
    """
    Control groups for the container alone: systemd takes the one that it finds itself in for its
    own.
    """
    mounted = [Path("/sys/fs/cgroup"), *(Path("/sys/fs/cgroup", n) for n in ("systemd", "unified"))]
    name = f"kvserver-tests-{os.getpid()}"
    groups = [path / name for path in mounted if (path / "cgroup.procs").exists()]
    for group in groups:
        group.mkdir()
    try:
        yield groups
    finally:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                waitFor(partial(isEmptied, Path(folder)), f"{folder} is empty")
                os.rmdir(folder)


def gather(root: Path) -> None:
    """
    Put there what the tests need: the checkout, and the wheels of what it depends on.
    """
    hidden = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    copy = root / COPY.relative_to("/")
    shutil.copytree(CHECKOUT, copy, ignore=hidden)
    wheels = root / WHEELS.relative_to("/")
    with tempfile.TemporaryDirectory() as scratch:
        # The Python that the README's python3 is there.
        subprocess.run(["/usr/bin/python3", "-m", "venv", scratch], check=True)
        needed = ["setuptools", "wheel", f"{copy}[metrics]"]
        pip = [f"{scratch}/bin/pip", "--disable-pip-version-check", "download", "--quiet"]
        subprocess.run([*pip, f"--dest={wheels}", *needed], check=True)
    for own in wheels.glob("kvserver-*"):
        own.unlink()
    shutil.rmtree(copy / "build", ignore_errors=True)


def boot(root: Path, groups: list[Path]) -> None:
    """
    Boot the container, and wait for it to end.
    """
    machineId = root / "etc/machine-id"
    machineId.unlink(missing_ok=True)
    machineId.touch()
    (root / "etc/systemd/system" / NAME).write_text(UNIT)

    def enter() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    subprocess.run(
        [
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={root}", "--console=pipe"),
            *("--register=no", "--keep-unit", "--private-network", f"--bind-ro={sys.prefix}"),
            f"systemd.unit={NAME}",
        ],
        preexec_fn=enter,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=LIMIT + 60,
        check=False,
    )


def main() -> int:
    """
    Boot, test, and say what the tests have said.

    @return: 0 if they have passed.
    """
    with root() as container:
        gather(container)
        try:
            with cgroups() as groups:
                boot(container, groups)
        finally:
            output = container / "srv/output"
            print(output.read_text() if output.exists() else "The container did not boot.")
        return 0 if (container / "srv/passed").exists() else 1


if __name__ == "__main__":
    sys.exit(main())
