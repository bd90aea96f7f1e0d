"""
The checked, frozen values that the service tree is built from. Nothing is opened here.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, TypeVar

from twisted.logger import Logger
from twisted.python.usage import UsageError

from kvserver.connections.banner import Banner
from kvserver.connections.limits import FDS_PER_WORKER, Limits, maxConnectionsAllowed
from kvserver.interfaces import IBinding
from kvserver.listening.bindings import TCPBinding
from kvserver.listening.endpoints import parseInterface, parseLocalEndpoint
from kvserver.listening.inherited import NotPassed, unusedSockets
from kvserver.listening.specification import ListenerSpec, parseDescription
from kvserver.operations.notify import NotifySocket
from kvserver.served import load
from kvserver.supervision.supervisor import CannotStart
from kvserver.workers.cpus import available

_log = Logger(namespace="kvserver.configuration")

DEFAULT_PORT = "4040"

LOOPBACK = ip_network("127.0.0.0/8"), ip_network("::1")
"""
The networks that may send a PROXY header by default.
"""

MAX_SECONDS = 10**9
"""
The upper bound of every time-out, in seconds: 31 years, more than any time-out needs.
"""

SECONDS_PER_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600}
"""
The units that a time on the command line may have.
"""

MAX_WORKERS = 1024
"""
More workers than any machine needs.
"""

Networks = tuple[IPv4Network | IPv6Network, ...]

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class TLSFiles:
    """
    The PEM files for TLS.

    @ivar certificate: The certificate, followed by its chain to the root.

    @ivar privateKey: The private key of the certificate.

    @ivar clientCA: The authorities that must have signed the certificates of clients. None: clients
        need no certificate.
    """

    certificate: str
    privateKey: str
    clientCA: str | None


@dataclass(frozen=True)
class Configuration:
    """
    The checked values of the command line and the environment.

    @ivar factory: Builds the protocol that is served.

    @ivar listeners: Where to listen, and with which layers.

    @ivar limits: The limits on connections.

    @ivar proxyTrusted: The networks from which a PROXY header is accepted.

    @ivar tls: The files for TLS. None: no listener has TLS.

    @ivar accessLog: The path of the access log. C{"-"}: it goes to the daemon's log. None: there is
        no access log.

    @ivar operations: Where the operations site listens. None: there is no site.

    @ivar served: The name of what is served, for the workers.

    @ivar workers: How many worker processes there are; None: this process serves by itself.

    @ivar replaceTimeout: How long a worker that was replaced waits for its last connections, in
        seconds; 0: for ever.

    @ivar drainDelay: How long the daemon goes on accepting after the signal to stop, in seconds.

    @ivar banner: The line that each connection begins with. None: there is none.

    @ivar notifySocket: The socket of the service manager. None: there is no manager to notify.
    """

    factory: Any
    served: str
    listeners: tuple[ListenerSpec, ...]
    limits: Limits
    proxyTrusted: Networks = LOOPBACK
    tls: TLSFiles | None = None
    accessLog: str | None = None
    operations: IBinding | None = None
    notifySocket: NotifySocket | None = None
    workers: int | None = None
    replaceTimeout: float = 0
    drainDelay: float = 0
    banner: str | None = None


def configure(
    options: Mapping[str, Any], served: str, environment: Mapping[str, str]
) -> Configuration:
    """
    Check every value, and build the configuration from them.

    @param options: The options, by their long names.

    @param served: The name of the factory that is served without C{--protocol}.

    @param environment: The environment of the process.

    @raise UsageError: A value is wrong. The message names the option and the value, and says what
        is accepted.

    @raise CannotStart: The service manager has not passed a socket that an option names.
    """
    name = served if options["protocol"] is None else options["protocol"]
    try:
        factory = load(name)
    except ValueError as error:
        raise UsageError(f"--protocol: {error}") from None
    listeners = _listeners(options, environment)
    trusted = tuple(map(_network, options["proxy-trusted"]))
    layers = {layer for spec in listeners for layer in spec.layers}
    for option in "tls-certificate", "tls-private-key", "tls-client-ca", "proxy-trusted":
        layer, _, _ = option.partition("-")
        if options[option] and layer not in layers:
            raise UsageError(f"--{option}: needs a --listen with {layer}:, as {layer}:tcp:4041")
    try:
        notifySocket = NotifySocket.fromEnvironment(environment)
    except ValueError as error:
        raise UsageError(str(error)) from None
    operations = _operations(options["metrics"], listeners, environment)
    bindings = [spec.binding for spec in listeners] + ([operations] if operations else [])
    for unused in unusedSockets(environment, bindings):
        _log.warn("systemd passed {socket}, and no option names it: no answer there", socket=unused)
    workers = _workers(options["workers"])
    return Configuration(
        factory,
        name,
        listeners,
        _limits(options, workers),
        trusted or LOOPBACK,
        _tlsFiles(options) if "tls" in layers else None,
        options["access-log"],
        operations,
        notifySocket,
        workers,
        _replaceTimeout(options),
        _seconds("--drain-delay", options["drain-delay"], 0),
        _banner(options["banner"]),
    )


def _banner(text: str | None) -> str | None:
    if text is not None:
        try:
            Banner(text)
        except ValueError as error:
            raise UsageError(f"--banner: {error}") from None
    return text


def _listeners(
    options: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[ListenerSpec, ...]:
    if not options["listen"]:
        return (_portAndInterface(options, environment),)
    for option in "port", "interface":
        if options[option] is not None:
            raise UsageError(f"--{option}: --listen says where to listen, give one of both")
    specs: list[ListenerSpec] = []
    for number, description in enumerate(options["listen"]):
        spec = _parse("--listen", parseDescription, description, environment)
        if any(spec.binding.conflictsWith(other.binding) for other in specs):
            raise UsageError(f"--listen: {description!r}: another one has that address")
        # tcp:0 may be repeated: the kernel chooses another port for each.
        same = options["listen"][:number].count(description)
        specs.append(replace(spec, name=f"{description} ({same + 1})") if same else spec)
    return tuple(specs)


def _portAndInterface(options: Mapping[str, Any], environment: Mapping[str, str]) -> ListenerSpec:
    if options["port"] is None:
        port = _port("PORT (environment)", environment.get("PORT", DEFAULT_PORT))
    else:
        port = _port("--port", options["port"])
    interface = options["interface"]
    if interface is not None:
        try:
            interface = parseInterface(interface)
        except ValueError as error:
            raise UsageError(f"--interface: {error}") from None
    return ListenerSpec(f"tcp:{port}", (), TCPBinding(port, interface or ""))


def _limits(options: Mapping[str, Any], workers: int | None) -> Limits:
    def number(option: str, kind: str, least: int, greatest: int) -> int:
        return _number(f"--{option}", options[option], kind, least, greatest)

    connections = "a number of connections that the hard limit of file descriptors allows,"
    most = maxConnectionsAllowed(workers or 0)
    return Limits(
        maxConnections=number("max-connections", connections, 0, most),
        maxPerSource=number("max-connections-per-source", connections, 0, most),
        idleTimeout=_seconds("--idle-timeout", options["idle-timeout"], 0),
        writeTimeout=_seconds("--write-timeout", options["write-timeout"], 1),
        drainTimeout=_seconds("--drain-timeout", options["drain-timeout"], 1),
    )


def _workers(value: str | None) -> int | None:
    if value is None:
        return None
    accepted = "auto, or a number of processes"
    isAuto = value == "auto"
    count = available() if isAuto else _number("--workers", value, accepted, 1, MAX_WORKERS)
    needed = count * FDS_PER_WORKER
    if maxConnectionsAllowed() <= needed:
        raise UsageError(
            f"--workers: {value!r} processes need {needed} file descriptors, more than the hard "
            "limit allows"
        )
    return count


def _replaceTimeout(options: Mapping[str, Any]) -> float:
    value = options["replace-timeout"]
    if value is None:
        return 0
    if options["workers"] is None:
        raise UsageError("--replace-timeout: there are no --workers")
    return _seconds("--replace-timeout", value, 0)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        accepted = "an address or a network, as 192.0.2.1 or 192.0.2.0/24"
        raise UsageError(f"--proxy-trusted: {error}; accepted is {accepted}") from None


def _tlsFiles(options: Mapping[str, Any]) -> TLSFiles:
    for option in "tls-certificate", "tls-private-key":
        if options[option] is None:
            raise UsageError(f"--listen: tls: needs --{option}")
    return TLSFiles(
        options["tls-certificate"], options["tls-private-key"], options["tls-client-ca"]
    )


def _parse(
    option: str,
    parse: Callable[[str, Mapping[str, str]], _Parsed],
    description: str,
    environment: Mapping[str, str],
) -> _Parsed:
    try:
        return parse(description, environment)
    except NotPassed as error:
        # The command line may be right, and the next start may find the socket.
        raise CannotStart(f"kvserver: {option}: {description!r}: {error}") from None
    except ValueError as error:
        raise UsageError(f"{option}: {description!r}: {error}") from None


def _operations(
    description: str | None, listeners: tuple[ListenerSpec, ...], environment: Mapping[str, str]
) -> IBinding | None:
    if description is None:
        return None
    try:
        import kvserver.operations.site  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--metrics: needs more than is installed ({error}): pip install '.[metrics]'"
        ) from None
    if description.startswith(("tls:", "proxy:")):
        raise UsageError(f"--metrics: {description!r}: tls: and proxy: are for --listen alone")
    binding = _parse("--metrics", parseLocalEndpoint, description, environment)
    for spec in listeners:
        if binding.conflictsWith(spec.binding):
            raise UsageError(f"--metrics: {description!r}: {spec.name} has that address")
    return binding


def _number(option: str, value: str, kind: str, least: int, greatest: int) -> int:
    # int() alone would accept '+1', ' 1', '1_0' and the digits of other scripts, too.
    if value.isascii() and value.isdigit() and len(value) <= 10:
        number = int(value)
        if least <= number <= greatest:
            return number
    raise UsageError(f"{option}: {value!r} is not {kind} from {least} to {greatest}")


def _seconds(option: str, value: str, least: int) -> float:
    match = re.fullmatch(r"([0-9]{1,10}(?:\.[0-9]{1,6})?)([smh]?)", value)
    if match:
        seconds = float(match[1]) * SECONDS_PER_UNIT[match[2]]
        if least <= seconds <= MAX_SECONDS:
            # A whole number is logged as one.
            return int(seconds) if seconds.is_integer() else seconds
    raise UsageError(
        f"{option}: {value!r} is not a number of seconds from {least} to {MAX_SECONDS}, "
        "as 30, 1.5, 30s, 5m or 1h"
    )


def _port(option: str, value: str) -> int:
    return _number(option, value, "a TCP port", 0, 65535)
