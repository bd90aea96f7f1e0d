"""
What pictures are drawn on: SVG by our own means, PNG by Pillow.
"""

from html import escape
from typing import Any, ClassVar

from zope.interface import Interface, implementer

from kvserver.check.latency import INSTALL, MissingExtra

Point = tuple[float, float]


class ICanvas(Interface):
    """
    A white area. Positions are in pixels from its upper left corner.
    """

    def line(points: list[Point], colour: str, width: float) -> None:
        """
        A line through these points.
        """

    def text(at: Point, words: str, anchor: str) -> None:
        """
        Words. C{anchor} says what of them is there: C{start}, C{middle} or C{end}.
        """

    def save(path: str) -> None:
        """
        Write the file.

        @raise OSError: It can't be written.
        """


@implementer(ICanvas)
class SVG:
    """
    A canvas for SVG.
    """

    def __init__(self, width: int, height: int) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def line(self, points: list[Point], colour: str, width: float) -> None:
        """
        See L{ICanvas}.
        """
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'
        )

    def text(self, at: Point, words: str, anchor: str) -> None:
        """
        See L{ICanvas}.
        """
        x, y = at
        self._parts.append(
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def save(self, path: str) -> None:
        """
        See L{ICanvas}.
        """
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join([*self._parts, "</svg>", ""]))


@implementer(ICanvas)
class PNG:
    """
    A canvas for PNG.
    """

    _ANCHORS: ClassVar = {"start": "lm", "middle": "mm", "end": "rm"}

    def __init__(self, width: int, height: int) -> None:
        image, draw, font = _pillow()
        self._image = image.new("RGB", (width, height), "white")
        self._draw = draw.Draw(self._image)
        self._font = font.load_default()
        # Without FreeType, Pillow has a font of fixed size that knows no anchors.
        self._hasAnchors = hasattr(self._font, "getbbox") and not isinstance(
            self._font, font.ImageFont
        )

    def line(self, points: list[Point], colour: str, width: float) -> None:
        """
        See L{ICanvas}.
        """
        self._draw.line(points, fill=colour, width=max(1, round(width)))

    def text(self, at: Point, words: str, anchor: str) -> None:
        """
        See L{ICanvas}.
        """
        named = {"anchor": self._ANCHORS[anchor]} if self._hasAnchors else {}
        self._draw.text(at, words, fill="black", font=self._font, **named)

    def save(self, path: str) -> None:
        """
        See L{ICanvas}.
        """
        self._image.save(path)


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtra(
            f"--plot: a .png needs pillow: {INSTALL}; an .svg needs nothing"
        ) from None
    return Image, ImageDraw, ImageFont


def canvasFor(path: str, width: int, height: int) -> ICanvas:
    """
    A canvas for this file, by its ending.

    @raise MissingExtra: What draws it is not installed.
    """
    kind: Any = PNG if path.endswith(".png") else SVG
    canvas: ICanvas = kind(width, height)
    return canvas
