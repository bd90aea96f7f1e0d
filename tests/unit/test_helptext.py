"""
The text of C{--help}.
"""

import re

import pytest

from kvserver.__main__ import CommandOptions
from kvserver.helptext import GROUPS, WIDTH, formatHelp
from kvserver.tap import Options


def namesOf(options: Options) -> set[str]:
    """
    The long names of all options.
    """
    return {name.removesuffix("=") for name in options.longOpt}


def test_groups() -> None:
    """
    Each option is in one group, with a placeholder if it takes a value, and none is left over.
    """
    options = CommandOptions()
    placed = [name for group in GROUPS.values() for name in group]
    assert sorted(placed) == sorted(namesOf(options))
    for group in GROUPS.values():
        for name, placeholder in group.items():
            assert (f"{name}=" in options.longOpt) == (placeholder != "")


def test_columns() -> None:
    """
    No line is too long, whatever the terminal, and each option has a line, in the order of the
    groups.
    """
    text = str(CommandOptions())
    assert max(map(len, text.splitlines())) <= WIDTH == 80
    described, _, _ = text.partition("\nTIME ")
    shown = re.findall(r"^  (?:-\w, |    )--([\w-]+)", described, re.MULTILINE)
    assert shown == [name for group in GROUPS.values() for name in group]
    for title in (*GROUPS, "Environment", "Signals", "Exit status", "Examples"):
        assert f"\n\n{title}:\n" in text
    assert "\n  -p, --port=PORT         TCP port to listen on, " in text
    assert "[default: $PORT, else 4040]" in " ".join(text.split())
    assert "\n  telnet 127.0.0.1 4040 " in text


def test_commandOnly() -> None:
    """
    Options that only the command has are not shown by twistd.
    """
    assert "--log-format=text|json" in formatHelp(CommandOptions(), "")
    assert "--log-format" not in formatHelp(Options(), "")


def test_optionsOfAnother() -> None:
    """
    The options that another plugin adds are shown, too.
    """

    class More(Options):
        def opt_colour(self, name: str) -> None:
            """
            The colour of the echo.
            """

    assert re.search(
        r"--version .*\n.*\n +--colour +The colour of the echo", formatHelp(More(), "")
    )


@pytest.mark.parametrize("option", ["--prot=x", "--prot", "--max-con=1", "--he", "--po=1"])
def test_abbreviation(option: str) -> None:
    """
    An abbreviation is no option: another version may have another one that begins so.
    """
    with pytest.raises(Exception, match=r"^option --[\w-]+ not recognized: try --help$"):
        Options().parseOptions([option])
