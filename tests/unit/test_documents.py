"""
README and manual: what is shown there is executed by a test, and what they point to is there.
"""

import re
from pathlib import Path

import pytest

from tests.support.documents import DAEMONS, DOCUMENTS, README, ROOT, blocks

SHOWN = {
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]'": ".ci/run executes it",
    "kubectl apply": "needs a cluster; test_deploy checks the files",
    "kvserver --listen=proxy": "part of the text on Kubernetes; needs a balancer",
    "$ .venv/bin/kvcheck tcp:lb.example:4040": "needs a balancer; kvcheck's own tests have one",
    "kvcheck tcp:127.0.0.1:4040 --soak": "lasts until Ctrl-C; tests of kvcheck have soaks",
    "kvserver/\n": "a drawing; test_rooms compares it",
    "Supervisor\n": "a drawing; test_rooms compares it",
    ".venv/bin/python -m tests.benchmark": "takes a quarter of an hour; test_benchmark has --quick",
}
"""
What is shown, and not executed as it is, by how it begins: and why.
"""


def executed() -> list[str]:
    """
    How the blocks begin that tests execute.
    """
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text()
        found += re.findall(r'\bblock\(\s*"((?:[^"\\]|\\.)+)"\s*\)', text)
        for name, begin in re.findall(r'^([A-Z_]+) = "((?:[^"\\]|\\.)+)"$', text, re.MULTILINE):
            found += [begin] if f"block({name})" in text else []
    return [begin.replace("\\n", "\n") for begin in found]


@pytest.mark.parametrize(
    "document",
    # The examples of the man pages are parsed by test_manual.
    [path for path in DOCUMENTS if path.name not in ("kvcheck.rst", "kvserver.rst")],
    ids=lambda path: path.name,
)
def test_everyBlockIsExecuted(document: Path) -> None:
    """
    Each block that can be pasted is executed by a test.
    """
    begins = (*executed(), *DAEMONS, *SHOWN)
    assert [one for one in blocks(document) if not one.startswith(begins)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links(document: Path) -> None:
    """
    What a document points to is there.
    """
    text = document.read_text()
    targets = re.findall(r"^\.\. _[^:\n]+: (\S+)$", text, re.MULTILINE)
    targets += re.findall(r"`[^`<]+<([^>`]+)>`_", text)
    for target in targets:
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_shortReadme() -> None:
    """
    The README is short enough to be read.
    """
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
