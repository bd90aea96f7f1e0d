"""
What README and manual show, as it would be pasted.
"""

import re
import subprocess
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

README = ROOT / "README.rst"

MANUAL = ROOT / "kvserver" / "manual"

MONITORING = MANUAL / "monitoring.rst"

SYSTEMD = MANUAL / "systemd.rst"

DOCUMENTS = [README, *sorted(MANUAL.glob("*.rst"))]


def blocks(document: Path) -> list[str]:
    """
    The literal blocks of a document.
    """
    found = re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", document.read_text() + "\n")
    return [textwrap.dedent(str(one)).rstrip("\n") + "\n" for one in found]


def block(begin: str) -> str:
    """
    The one literal block that begins so. Where two documents have it, it is the same.
    """
    found = {one for document in DOCUMENTS for one in blocks(document) if one.startswith(begin)}
    assert len(found) == 1, (begin, found)
    return found.pop()


def paste(
    script: str,
    *flags: str,
    status: int = 0,
    folder: Path | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """
    Run a script as it would be pasted.

    @param flags: What the shell is told besides.

    @param status: The exit status that it must have.

    @return: What it prints.
    """
    done = subprocess.run(
        ["bash", *flags, "-c", script],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


DAEMONS = (
    "python3 -m venv .venv && .venv/bin/pip install . &&",
    ".venv/bin/twistd -n kvserver -l proxy:tcp:4041",
    ".venv/bin/pip install '.[metrics]'",
    ".venv/bin/twistd -n kvserver --listen tcp:4040 --listen proxy:tls:tcp:4444",
    ".venv/bin/twistd -n kvserver --workers=2",
    ".venv/bin/twist --log-format=json",
)
"""
The blocks that end in a daemon in the foreground, by how they begin.
"""
