"""
The manual, and the pages for man(1) that are made from it.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree, publish_string

import kvserver
from kvserver.__main__ import CommandOptions
from kvserver.check.options import newParser, parseArguments
from tests.support.clients import program

MANUAL = Path(kvserver.__file__).parent / "manual"

PAGES = ("kvserver", "kvcheck")

SETTINGS = {"report_level": 1, "halt_level": 1, "_disable_config": True}
"""
Of docutils: whatever it says of a source is a fault.
"""


def tree(name: str) -> nodes.document:
    """
    The source of a page.
    """
    source = (MANUAL / f"{name}.rst").read_text()
    return publish_doctree(source, settings_overrides=SETTINGS)


def described(name: str) -> list[str]:
    """
    The options that a page describes, by all their names.
    """
    options = tree(name).findall(nodes.option_string)
    return sorted(option.astext() for option in options)


def examples(name: str, command: str) -> list[list[str]]:
    """
    The arguments of the command in each example.
    """
    blocks = [block.astext() for block in tree(name).findall(nodes.literal_block)]
    words = [shlex.split(block.replace("\\\n", "")) for block in blocks]
    return [line[line.index(command) + 1 :] for line in words if command in line]


def page(source: Path) -> str:
    """
    Make a page for man(1).
    """
    made = publish_string(source.read_text(), writer="manpage", settings_overrides=SETTINGS)
    assert isinstance(made, bytes)
    return made.decode()


def withoutComments(text: str) -> str:
    """
    A page, without what tells who has made it.
    """
    return re.sub(r'^\.\\".*\n', "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_pages(name: str) -> None:
    """
    The pages that are installed are those that the sources make.
    """
    source = MANUAL / f"{name}.rst"
    command = (
        f"python -m docutils --writer=manpage kvserver/manual/{name}.rst kvserver/manual/{name}.1"
    )
    installed = (MANUAL / f"{name}.1").read_text()
    assert withoutComments(page(source)) == withoutComments(installed), f"run {command}"


@pytest.mark.parametrize("name", PAGES)
def test_man(name: str) -> None:
    """
    man(1) has nothing to say against a page.
    """
    done = subprocess.run(
        [program("man"), "--warnings", "--encoding=UTF-8", "-l", MANUAL / f"{name}.1"],
        env=os.environ | {"MANWIDTH": "80", "MANPAGER": "cat", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{name}(1)")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_optionsOfKvserver() -> None:
    """
    The manual has each option of the command, and no other.
    """
    options = CommandOptions()
    names = {name.removesuffix("=") for name in options.longOpt}
    short = {name for name in options.synonyms if len(name) == 1}
    expected = [*(f"--{name}" for name in names), *(f"-{name}" for name in short)]
    assert described("kvserver") == sorted(expected)


def test_optionsOfKvcheck() -> None:
    """
    So it has of kvcheck.
    """
    actions = newParser("version")._actions
    assert described("kvcheck") == sorted(
        option for action in actions for option in action.option_strings
    )


def test_examplesOfKvserver(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The command line of each example is right.
    """
    monkeypatch.delenv("PORT", raising=False)
    found = examples("kvserver", "kvserver")
    assert len(found) > 5
    for arguments in found:
        CommandOptions().parseOptions(arguments)


def test_examplesOfKvcheck() -> None:
    """
    So is that of kvcheck.
    """
    found = examples("kvcheck", "kvcheck")
    assert len(found) > 3
    for arguments in found:
        parseArguments(arguments, "version")


def test_signalsAndStatuses() -> None:
    """
    Each signal and exit status of the manual is in --help, too.
    """
    shown = str(CommandOptions())
    for title in "SIGNALS", "EXIT STATUS":
        (section,) = (
            section
            for section in tree("kvserver").findall(nodes.section)
            if section[0].astext() == title
        )
        for term in section.findall(nodes.term):
            assert re.search(rf"^  {term.astext()}  +\w", shown, re.MULTILINE)
