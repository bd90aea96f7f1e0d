"""
The house as it is drawn. (What may import what is in setup.cfg.)
"""

import re
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock

import kvserver
from kvserver.tap import Options, makeService
from tests.support.documents import block

FOLDER = Path(kvserver.__file__).parent

LIMIT = 340
"""
How many lines a module may have.
"""


def test_modulesAreSmall() -> None:
    """
    None has more lines than that.
    """
    modules = FOLDER.rglob("*.py")
    lines = {str(path): path.read_text().count("\n") for path in modules}
    assert lines
    assert {path: count for path, count in lines.items() if count > LIMIT} == {}


def rooms() -> set[str]:
    """
    The folders and modules of the package.
    """
    found = {path.name for path in FOLDER.iterdir() if path.suffix == ".py"}
    found |= {path.parent.name + "/" for path in FOLDER.glob("*/__init__.py")}
    return found - {"__init__.py"}


def test_roomsOfTheManual() -> None:
    """
    The manual names each folder and module, and no other.
    """
    drawn = re.findall(r"^  (\S+) +\S", block("kvserver/\n  __main__.py"), re.MULTILINE)
    assert set(drawn) == rooms()
    assert len(drawn) == len(rooms())


def test_roomsOfTheDocstring() -> None:
    """
    So does the docstring of the package.
    """
    drawing, _, _ = (kvserver.__doc__ or "").partition("The service tree::")
    drawn = re.findall(r"^    (\w+/?)  +\w", drawing, re.MULTILINE)
    assert set(drawn) == {name.removesuffix(".py") for name in rooms()}


def test_treeOfTheManual(tmp_path: Path) -> None:
    """
    The children of the service tree are those that the manual draws, in this order.
    """
    options = Options()
    options.parseOptions(
        [
            *("--workers=2", "--metrics=tcp:0", f"--access-log={tmp_path}/log"),
            *("--listen=tcp:4040", f"--listen=unix:{tmp_path}/socket"),
        ]
    )
    children = [type(child).__name__ for child in makeService(options, MemoryReactorClock())]
    drawn = re.findall(r"^[|`]-- (\w+)(?: (\d) \.\. N)?", block("Supervisor\n|--"), re.MULTILINE)
    expected = [name for name, several in drawn for _ in range(2 if several else 1)]
    assert children == expected
