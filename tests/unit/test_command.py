"""
What the command C{kvserver} adds to the plugin's options.
"""

import pytest
from twisted.logger import LogLevel

from kvserver.__main__ import CommandOptions


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """
    Parse a wrong command line. Return the line that is printed.
    """
    with pytest.raises(SystemExit) as caught:
        CommandOptions().parseOptions(list(arguments))
    assert caught.value.code == 64
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_log() -> None:
    """
    The log is text, from the level info on, unless it is told otherwise.
    """
    options = CommandOptions()
    options.parseOptions([])
    assert options.parent is not None
    assert (options["log-format"], options.parent["logLevel"]) == ("text", LogLevel.info)
    options.parseOptions(["--log-format=json", "--log-level=debug"])
    assert (options["log-format"], options.parent["logLevel"]) == ("json", LogLevel.debug)


def test_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """
    What is wrong is one line on standard error, and the status is 64.
    """
    assert refusal(capsys, "--log-format=xml") == (
        "kvserver: --log-format: 'xml' is not text or json\n"
    )
    assert refusal(capsys, "--log-level=loud") == (
        "kvserver: --log-level: 'loud' is not one of debug, info, warn, error, critical\n"
    )
    assert refusal(capsys, "--port=x").startswith("kvserver: --port: 'x' is not ")
    assert refusal(capsys, "-n") == "kvserver: option -n not recognized: try --help\n"
