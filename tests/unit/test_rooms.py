"""
No module grows beyond what one can have in one's head. (What may import what is in setup.cfg.)
"""

from pathlib import Path

import kvserver

LIMIT = 340
"""
How many lines a module may have.
"""


def test_modulesAreSmall() -> None:
    """
    None has more lines than that.
    """
    modules = Path(kvserver.__file__).parent.rglob("*.py")
    lines = {str(path): path.read_text().count("\n") for path in modules}
    assert lines
    assert {path: count for path, count in lines.items() if count > LIMIT} == {}
