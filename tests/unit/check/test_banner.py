"""
The line before the echo.
"""

import pytest

from kvserver.check.banner import MAX_LENGTH, Banner


@pytest.mark.parametrize("cut", range(1, 8))
def test_cutAnywhere(cut: int) -> None:
    """
    However it is cut, the first line is taken away, and nothing else.
    """
    banner = Banner(True)
    came = [b"web1\nab\nc"[:cut], b"web1\nab\nc"[cut:]]
    rest = b"".join(banner.received(part) if banner.isDue else part for part in came)
    assert (banner.text, rest, banner.isDue) == (b"web1\n", b"ab\nc", False)


def test_none() -> None:
    """
    None is expected unless that is said, and what has no end is none.
    """
    assert not Banner(False).isDue
    banner = Banner(True)
    assert banner.received(b"x" * MAX_LENGTH) == b""
    assert banner.received(b"y") == b"x" * MAX_LENGTH + b"y"
    assert not banner.isDue
