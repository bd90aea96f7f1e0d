"""
What a connection comes by: where it is listened for, and what it passes before its protocol.
"""

from dataclasses import dataclass

from kvserver.interfaces import IBinding
from kvserver.listening.endpoints import parseEndpoint


@dataclass(frozen=True)
class ListenerSpec:
    """
    One way to come.

    @ivar name: What it is called in the log: its description.

    @ivar layers: C{proxy}, C{tls}: what a connection passes, in the order of the wire.

    @ivar binding: Where it is listened for.
    """

    name: str
    layers: tuple[str, ...]
    binding: IBinding


_LAYERS = ((), ("proxy",), ("tls",), ("proxy", "tls"))


def parseDescription(description: str) -> ListenerSpec:
    """
    What a description says: the layers, and then an endpoint, as in C{proxy:tls:tcp:4444}.

    @raise ValueError: It says nothing that can be listened on. Says why.
    """
    layers: list[str] = []
    endpoint = description
    while endpoint.startswith(("proxy:", "tls:")):
        layer, _, endpoint = endpoint.partition(":")
        layers.append(layer)
    if tuple(layers) not in _LAYERS:
        raise ValueError("before an endpoint may stand proxy:, tls: or proxy:tls:")
    return ListenerSpec(description, tuple(layers), parseEndpoint(endpoint))
