"""
The line that the other side sends before the echo.
"""

MAX_LENGTH = 1 << 14
"""
The most bytes of a banner. If more come without an LF, it is none.
"""


class Banner:
    """
    Takes the first line away from what comes.

    @ivar isDue: Is it still to come, or the rest of it?

    @ivar text: What has come of it.
    """

    def __init__(self, isDue: bool) -> None:
        """
        @param isDue: Does one come at all?
        """
        self.isDue = isDue
        self.text = b""

    def received(self, data: bytes) -> bytes:
        """
        Something came.

        @return: What of it comes after the banner.
        """
        self.text += data
        end = self.text.find(b"\n") + 1
        if not end:
            if len(self.text) <= MAX_LENGTH:
                return b""
            self.isDue = False
            return self.text
        self.isDue = False
        rest, self.text = self.text[end:], self.text[:end]
        return rest
