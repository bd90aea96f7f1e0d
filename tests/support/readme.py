"""
What the README and the manual show, as it would be pasted.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.rst"
MANUAL = ROOT / "kvserver/manual"

MONITORING = README.parent / "kvserver/manual/monitoring.rst"


def block(begin: str, document: Path = README) -> str:
    """
    The one literal block that begins so.
    """
    (found,) = re.findall(
        rf"^    {re.escape(begin)}.*(?:\n(?:    .*)?)*", document.read_text(), re.MULTILINE
    )
    return re.sub("^    ", "", str(found), flags=re.MULTILINE)
