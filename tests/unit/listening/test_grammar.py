"""
The grammar of endpoint descriptions, beside Twisted's.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import endpoints

from kvserver.listening.grammar import escape, parseArguments


# Keys beyond ASCII are an UnicodeError there.
@given(st.text(alphabet=":=\\ab") | st.text(st.characters(max_codepoint=127)))
def test_likeTwisted(description: str) -> None:
    """
    A description has the arguments that Twisted finds in it.
    """
    try:
        expected = endpoints._parse(description)
    except RuntimeError:
        # Its generator runs out after a backslash.
        with pytest.raises(ValueError, match="it ends with a backslash"):
            parseArguments(description)
        return
    positional, named = parseArguments(description)
    assert (positional, dict(named)) == expected


def test_repeated() -> None:
    """
    A key that is repeated is there twice: Twisted takes the last one without a word.
    """
    assert parseArguments("tcp:port=1:port=2") == (["tcp"], [("port", "1"), ("port", "2")])


@given(st.text(alphabet=":=\\ab") | st.text())
def test_escape(value: str) -> None:
    """
    What is escaped is one value, with a key or without.
    """
    assert parseArguments(f"{escape(value)}:key={escape(value)}") == ([value], [("key", value)])
