"""
Finds the factory to serve: that of the echo, or of a protocol given by name.
"""

from contextlib import suppress
from inspect import signature
from typing import Any

from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.python.reflect import ObjectNotFound, namedAny

ACCEPTED = (
    "the name of a Protocol class, a Factory, or a callable without arguments that returns one, "
    "as package.module.Name"
)


def load(name: str) -> Any:
    """
    Find the factory to serve.

    @param name: The name, as C{package.module.Name}, of an C{IProtocol} class, an
        C{IProtocolFactory}, or a callable without arguments that returns one of these.

    @return: A factory.

    @raise ValueError: The name can't be found, or is none of these. The message says why.
    """
    if "." not in name.strip("."):
        raise ValueError(f"{name!r} is not {ACCEPTED}")
    try:
        found = namedAny(name)
        factory = _factoryFor(found)
        if factory is None and callable(found):
            factory = _factoryFor(found())
    except ObjectNotFound:
        module = name.partition(".")[0]
        raise ValueError(
            f"{name!r} can't be used: there is no module {module!r} (is its folder in PYTHONPATH?)"
        ) from None
    except Exception as error:
        # This runs code that is not ours, which may raise anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name!r} can't be used: {type(error).__name__}: {reason}") from error
    if factory is None:
        raise ValueError(f"{name!r} is not {ACCEPTED}")
    return factory


def _factoryFor(found: Any) -> Any:
    """
    Return a factory for C{found}, or None if it is neither a protocol class nor a factory.
    """
    if isinstance(found, type):
        if not IProtocol.implementedBy(found):
            return None
        with suppress(ValueError):
            # One that needs arguments could not be built. Some have no signature to tell.
            signature(found).bind()
        factory = Factory.forProtocol(found)  # type: ignore[type-var]
        # Otherwise the factory would log each time that a listener starts or stops.
        factory.noisy = False
        return factory
    return found if IProtocolFactory.providedBy(found) else None


def unitOf(factory: Any) -> str | None:
    """
    Return what the protocols of a factory count (C{ICountsWork.unit}), or None if they count
    nothing.
    """
    unit: str | None = getattr(getattr(factory, "protocol", None), "unit", None)
    return unit
