"""
What the README and the manual show, as it would be pasted.
"""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.rst"

MONITORING = README.parent / "kvserver/manual/monitoring.rst"


def block(begin: str, page: Path = README) -> str:
    """
    The one literal block that begins so.
    """
    (found,) = re.findall(
        rf"^    {re.escape(begin)}.*(?:\n(?:    .*)?)*", page.read_text(), re.MULTILINE
    )
    return re.sub("^    ", "", str(found), flags=re.MULTILINE)
