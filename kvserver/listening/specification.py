"""
Specifies a listener: what it listens on, and what a connection passes before its protocol.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from kvserver.interfaces import IBinding
from kvserver.listening.endpoints import parseEndpoint


@dataclass(frozen=True)
class ListenerSpec:
    """
    The specification of one listener.

    @ivar name: Its name in the log: its description.

    @ivar layers: C{proxy}, C{tls}: what a connection passes before its protocol, in the order on
        the wire.

    @ivar binding: What it listens on.
    """

    name: str
    layers: tuple[str, ...]
    binding: IBinding


_LAYERS = ((), ("proxy",), ("tls",), ("proxy", "tls"))


def parseDescription(description: str, environment: Mapping[str, str] = os.environ) -> ListenerSpec:
    """
    Parse a description: the layers, then an endpoint, as in C{proxy:tls:tcp:4444}.

    @param environment: The environment of the process, which names the sockets that the service
        manager has passed.

    @raise NotPassed: The service manager has not passed the socket.

    @raise ValueError: The description is wrong. The message says why.
    """
    layers: list[str] = []
    endpoint = description
    while endpoint.startswith(("proxy:", "tls:")):
        layer, _, endpoint = endpoint.partition(":")
        layers.append(layer)
    if tuple(layers) not in _LAYERS:
        raise ValueError("before an endpoint may stand proxy:, tls: or proxy:tls:")
    return ListenerSpec(description, tuple(layers), parseEndpoint(endpoint, environment))
