"""
What the README and the manual show, as it would be pasted.
"""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def pages() -> list[str]:
    """
    The README, and the chapters of the manual.
    """
    paths = (CHECKOUT / "README.rst", *sorted(CHECKOUT.glob("kvserver/manual/*.rst")))
    return [path.read_text() for path in paths]


def block(begin: str) -> str:
    """
    The one literal block of the README or of a chapter of the manual that begins so.
    """
    pattern = rf"^    {re.escape(begin)}.*(?:\n(?:    .*)?)*"
    # The README may repeat what the manual shows.
    (found,) = {
        match.strip("\n") + "\n"
        for page in pages()
        for match in re.findall(pattern, page, re.MULTILINE)
    }
    return re.sub("^    ", "", found, flags=re.MULTILINE)
