"""
What is served: the factory of a protocol, the echo's or anybody's.
"""

from typing import Any

from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.python.reflect import namedAny

ACCEPTED = (
    "the name of a Protocol class, a Factory, or a callable without arguments that returns one, "
    "as package.module.Name"
)


def load(name: str) -> Any:
    """
    Find what is to be served.

    @param name: Its name, as C{package.module.Name}: a C{IProtocol} class, a C{IProtocolFactory},
        or a callable without arguments that returns one of these.

    @return: A factory.

    @raise ValueError: It is not found, or is none of these. Says why.
    """
    if "." not in name.strip("."):
        raise ValueError(f"{name!r} is not {ACCEPTED}")
    try:
        found = namedAny(name)
        factory = _factoryFor(found)
        if factory is None and callable(found):
            factory = _factoryFor(found())
    except Exception as error:
        # What somebody else's code raises may be anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name!r} can't be used: {type(error).__name__}: {reason}") from error
    if factory is None:
        raise ValueError(f"{name!r} is not {ACCEPTED}")
    return factory


def _factoryFor(found: Any) -> Any:
    """
    A factory for what was found; None if it is neither a protocol nor a factory.
    """
    if isinstance(found, type):
        if not IProtocol.implementedBy(found):
            return None
        factory = Factory.forProtocol(found)  # type: ignore[type-var]
        # Its log would only say when the listeners begin and cease to listen.
        factory.noisy = False
        return factory
    return found if IProtocolFactory.providedBy(found) else None


def unitOf(factory: Any) -> str | None:
    """
    What the protocols of a factory count, as L{ICountsWork} has it; None if they don't.
    """
    unit: str | None = getattr(getattr(factory, "protocol", None), "unit", None)
    return unit
