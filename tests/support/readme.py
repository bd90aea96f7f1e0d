"""
What the README shows, as it would be pasted.
"""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.rst"


def block(begin: str) -> str:
    """
    The one literal block that begins so.
    """
    (found,) = re.findall(
        rf"^    {re.escape(begin)}.*(?:\n(?:    .*)?)*", README.read_text(), re.MULTILINE
    )
    return re.sub("^    ", "", str(found), flags=re.MULTILINE)
