"""
The grammar of Twisted's endpoint descriptions: colons separate the arguments, the first C{=} of an
argument ends its key, and a backslash takes the meaning from the character after it.
"""


def parseArguments(description: str) -> tuple[list[str], list[tuple[str, str]]]:
    """
    Split a description, as L{twisted.internet.endpoints} does.

    @return: The arguments without a key, of which the first is the kind of the endpoint, and those
        with one. A key that is repeated is in it twice.

    @raise ValueError: It ends with a backslash.
    """
    positional: list[str] = []
    named: list[tuple[str, str]] = []
    key: str | None = None
    value = ""

    def end() -> None:
        if key is None:
            positional.append(value)
        else:
            named.append((key, value))

    characters = iter(description)
    for character in characters:
        if character == ":":
            end()
            key, value = None, ""
        elif character == "=" and key is None:
            key, value = value, ""
        elif character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise ValueError("it ends with a backslash, which escapes nothing")
            value += escaped
        else:
            value += character
    end()
    return positional, named


def escape(text: str) -> str:
    """
    A text as the value of an argument.
    """
    for character in "\\:=":
        text = text.replace(character, "\\" + character)
    return text
