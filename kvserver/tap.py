"""
The command line, and the assembly of the service tree.
"""

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Any, ClassVar, NoReturn

import twisted
from twisted.logger import LogLevel
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from kvserver import __version__
from kvserver.accesslog import ToFile, ToLog
from kvserver.address import TCP, Address, parse, parseInterface
from kvserver.certificates import BadCertificate, Certificates
from kvserver.connections import Connections, Limits, mostConnections
from kvserver.listener import Listener
from kvserver.notify import Notifier, takeManager
from kvserver.poller import Poller
from kvserver.process import Signals, fail, keepTime
from kvserver.route import Route
from kvserver.served import load, unitOf
from kvserver.supervisor import ChildSpec, RestartIntensity, Supervisor
from kvserver.wire import Wire, parseWire

DEFAULT_PORT = "4040"


class Options(UsageOptions):
    """
    What can be said on the command line.
    """

    synopsis = "[options]"
    optParameters: ClassVar = [
        [
            "port",
            "p",
            None,
            "TCP port to listen on, IPv4 and IPv6; 0 picks a free one and logs it. "
            f"[default: $PORT, else {DEFAULT_PORT}]",
        ],
        [
            "interface",
            "i",
            None,
            "Listen on this IPv4 or IPv6 address only. [default: all]",
        ],
        [
            "tls-certificate",
            None,
            None,
            "PEM file for tls: the certificate, and those that lead from it to the root.",
        ],
        [
            "tls-private-key",
            None,
            None,
            "PEM file for tls: the key of the certificate.",
        ],
        [
            "tls-client-ca",
            None,
            None,
            "PEM file for tls: require a client certificate that is signed by one of these.",
        ],
        [
            "max-connections",
            None,
            "0",
            "At so many connections no more are accepted: the next client waits until one leaves. "
            "0: as many as the limit of file descriptors allows.",
        ],
        [
            "max-connections-per-source",
            None,
            "0",
            "One address (IPv6: one /64) with so many connections is refused more. 0: no limit.",
        ],
        [
            "idle-timeout",
            None,
            "0",
            "Seconds without a byte in either direction after which a connection is closed. "
            "0: never.",
        ],
        [
            "write-timeout",
            None,
            "60",
            "Seconds that a client may leave its echo unread.",
        ],
        [
            "drain-timeout",
            None,
            "15",
            "Seconds that a stop waits for connections to come to rest.",
        ],
        [
            "access-log",
            None,
            None,
            "File for one JSON record a connection; -: the log. [default: none]",
        ],
        [
            "protocol",
            None,
            None,
            "Serve this instead of the echo: a Protocol class, a Factory, or a callable that "
            "returns one, as package.module.Name.",
        ],
        [
            "metrics",
            None,
            None,
            "Serve /metrics, /healthz and /readyz there: a Twisted endpoint. [default: none]",
        ],
    ]
    longdesc = "A TCP line echo daemon: each line comes back when it is complete, byte for byte."
    examples = """
Examples:
  twistd -n kvserver                        in the foreground; ^C stops it
  twistd -n kvserver -p 4041 -i 127.0.0.1   for clients on this host only
  PORT=4041 twistd -n kvserver              the port from the environment
  twistd --pidfile=/run/kvserver.pid --logfile=/var/log/kvserver.log kvserver
                                            as a daemon
  twistd -n kvserver -l unix:/tmp/echo.sock -l tls:tcp:4443
      --tls-certificate=server.pem --tls-private-key=server.key
                                            a UNIX socket, and TLS
  twistd -n kvserver -l proxy:tcp:4041 --proxy-trusted=192.0.2.0/24
                                            behind a balancer
  telnet 127.0.0.1 4040                     talk to it
"""

    served: ClassVar[str] = "kvserver.factory.EchoFactory"
    """
    What is served without C{--protocol}. A plugin of one's own names its own here.
    """

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["proxy-trusted"] = []

    def getUsage(self, width: int | None = None) -> str:
        """
        The text of C{--help}, with the examples as they are written: Twisted would fill their
        lines.
        """
        return super().getUsage(width) + self.examples

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse the command line.

        @raise UsageError: Something is wrong with it.

        @raise SystemExit: The same, said under C{twistd} or C{twist}. They would bury the one line
            that matters below their usage, and agree on no exit status: 64 for C{twist}, 1 for the
            C{twistd} of Twisted 26.10, and 0, as if all were well, for those before.
        """
        try:
            super().parseOptions(options)
        except UsageError as error:
            if self.parent is None:
                raise
            raise SystemExit(f"kvserver: {error}") from error

    def opt_listen(self, description: str) -> None:
        """
        Listen there, not on --port: a Twisted endpoint, after proxy: or tls:. May be repeated.
        """
        self["listen"].append(description)

    opt_l = opt_listen

    def opt_proxy_trusted(self, network: str) -> None:
        """
        An address or network that may send a PROXY header. May be repeated. [default: loopback]
        """
        try:
            self["proxy-trusted"].append(ip_network(network))
        except ValueError:
            raise UsageError(
                f"--proxy-trusted: {network!r} is not an address or network, as 192.0.2.0/24"
            ) from None

    def opt_version(self) -> NoReturn:
        """
        Show the versions of kvserver, Twisted and Python, and exit.
        """
        python = platform.python_version()
        print(f"kvserver {__version__} (Twisted {twisted.__version__}, Python {python})")
        sys.exit(0)

    def parseArgs(self, *args: str) -> None:
        """
        Accept no argument.

        @raise UsageError: There is one.
        """
        if args:
            raise UsageError(f"unexpected argument {args[0]!r}: kvserver takes options only")

    def postOptions(self) -> None:
        """
        Check each value, and make it what the tree is built from.

        @raise UsageError: A value is wrong. Says which, and what is accepted.
        """
        try:
            self["factory"] = load(self["protocol"] or self.served)
        except ValueError as error:
            raise UsageError(f"--protocol: {error}") from None
        self["wires"] = self._wires()
        layers = {layer for wire in self["wires"] for layer in wire.layers}
        for option in "tls-certificate", "tls-private-key", "tls-client-ca", "proxy-trusted":
            layer, _, _ = option.partition("-")
            if self[option] and layer not in layers:
                raise UsageError(f"--{option}: there is no --listen with {layer}: before it")
        self["certificates"] = self._certificates() if "tls" in layers else None
        self["proxy-trusted"] = tuple(self["proxy-trusted"]) or LOOPBACK
        most = mostConnections()
        connections = "a number of connections that the hard limit of file descriptors allows,"
        for option, kind, least, greatest in (
            ("max-connections", connections, 0, most),
            ("max-connections-per-source", connections, 0, most),
            ("idle-timeout", "a number of seconds", 0, _SECONDS),
            ("write-timeout", "a number of seconds", 1, _SECONDS),
            ("drain-timeout", "a number of seconds", 1, _SECONDS),
        ):
            self[option] = _number(f"--{option}", self[option], kind, least, greatest)
        self["metrics-address"] = self._metricsAddress()
        self["access-log"] = self._accessLog()
        try:
            self["manager"] = takeManager(os.environ)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def _wires(self) -> list[Wire]:
        """
        All that is to be listened on.
        """
        if not self["listen"]:
            if self["port"] is None:
                port = _port("PORT (environment)", os.environ.get("PORT", DEFAULT_PORT))
            else:
                port = _port("--port", self["port"])
            interface = self["interface"]
            if interface is not None:
                try:
                    interface = parseInterface(interface)
                except ValueError as error:
                    raise UsageError(f"--interface: {error}") from None
            return [Wire(f"tcp:{port}", (), TCP(port, interface or ""))]
        for option in "port", "interface":
            if self[option] is not None:
                raise UsageError(f"--{option}: --listen says where to listen, give one of both")
        from twisted.internet import reactor

        wires: list[Wire] = []
        for number, description in enumerate(self["listen"]):
            try:
                wire = parseWire(reactor, description)
            except ValueError as error:
                raise UsageError(f"--listen: {description!r}: {error}") from None
            for other in wires:
                if wire.address.overlaps(other.address):
                    raise UsageError(f"--listen: {description!r}: another one has that address")
            # As tcp:0, which may be repeated: each chooses a port for itself.
            same = self["listen"][:number].count(description)
            wires.append(replace(wire, name=f"{description} ({same + 1})") if same else wire)
        return wires

    def _metricsAddress(self) -> Address | None:
        """
        Where metrics are served.
        """
        if self["metrics"] is None:
            return None
        try:
            import kvserver.metrics  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"--metrics: needs more than is installed ({error}): "
                "pip install 'kvserver[metrics]'"
            ) from None
        from twisted.internet import reactor

        try:
            return parse(reactor, self["metrics"])
        except ValueError as error:
            raise UsageError(f"--metrics: {self['metrics']!r}: {error}") from None

    def _accessLog(self) -> ToFile | ToLog | None:
        """
        Where records of connections go.
        """
        path = self["access-log"]
        if path is None:
            return None
        if path == "-":
            return ToLog(time.time)
        from twisted.internet import reactor

        try:
            return ToFile(path, time.time, reactor, self._owner())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--access-log: {path!r} can't be written: {reason}") from None

    def _owner(self) -> tuple[int, int]:
        """
        As whom C{twistd} goes on when it sheds its privileges; -1: as it is.
        """
        if self.parent is None or os.getuid() != 0:
            return -1, -1
        user, group = self.parent.get("uid"), self.parent.get("gid")
        return -1 if user is None else user, -1 if group is None else group

    def _certificates(self) -> Certificates:
        """
        What tls: shows, from files that can be used.
        """
        for option in "tls-certificate", "tls-private-key":
            if self[option] is None:
                raise UsageError(f"--listen: tls: needs --{option}")
        try:
            return Certificates(
                self["tls-certificate"], self["tls-private-key"], self["tls-client-ca"]
            )
        except BadCertificate as error:
            raise UsageError(str(error)) from None


LOOPBACK = ip_network("127.0.0.0/8"), ip_network("::1")
"""
Who may send a PROXY header if nobody else is named.
"""

_SECONDS = 10**9
"""
More than any time-out needs: 31 years.
"""


def _number(option: str, value: str, kind: str, least: int, greatest: int) -> int:
    # int() alone would take '+1', ' 1', '1_0' and the digits of other scripts.
    if value.isascii() and value.isdigit() and len(value) <= 10:
        number = int(value)
        if least <= number <= greatest:
            return number
    raise UsageError(f"{option}: {value!r} is not {kind} from {least} to {greatest}")


def _port(option: str, value: str) -> int:
    return _number(option, value, "a TCP port", 0, 65535)


def makeService(options: Options, reactor: Any = None) -> Supervisor:
    """
    Assemble the service tree.

    @param options: What the command line said, checked.

    @param reactor: The reactor that it runs on; by default the global one.
    """
    if reactor is None:
        from twisted.internet import reactor

        keepTime(reactor)
    limits = Limits(
        connections=options["max-connections"],
        perSource=options["max-connections-per-source"],
        idle=options["idle-timeout"],
        write=options["write-timeout"],
        drain=options["drain-timeout"],
    )
    accessLog = options["access-log"]
    # twist has levels of the log.
    verbose = options.parent is not None and options.parent.get("logLevel") is LogLevel.debug
    factory = options["factory"]
    connections = Connections(
        reactor,
        limits,
        accessLog and accessLog.report,
        verbose,
        unitOf(factory),
    )
    poller = Poller(reactor)
    certificates = options["certificates"]

    def routeFor(wire: Wire) -> Route:
        return Route(
            factory,
            connections,
            poller,
            options["proxy-trusted"] if "proxy" in wire.layers else None,
            certificates if "tls" in wire.layers else None,
        )

    def listenerFor(wire: Wire) -> ChildSpec:
        route = routeFor(wire)
        return ChildSpec(
            wire.name,
            lambda died: Listener(
                reactor, wire.address, wire.layers, route, connections, poller, died
            ),
        )

    def trouble() -> str | None:
        if not notifier.running:
            return "starting" if supervisor.running else "draining"
        listeners = (child for child in supervisor if isinstance(child, Listener))
        broken = [str(child.name) for child in listeners if not child.isListening()]
        return f"not listening: {', '.join(broken)}" if broken else None

    def status() -> str:
        done = f", {connections.counts()[0]} {connections.unit} served" if connections.unit else ""
        return f"{len(connections)} connections{done}"

    notifier = Notifier(
        reactor,
        options["manager"],
        status,
        lambda: trouble() is None,
        limits.drain,
    )
    reloads = [notifier.reloading]
    if certificates:
        reloads.append(certificates.reload)
    if accessLog:
        reloads.append(accessLog.reopen)
    reloads.append(notifier.ready)
    metrics = []
    if options["metrics-address"]:
        from kvserver.metrics import Collector, MetricsSite, site

        def restarts() -> dict[str, int]:
            return {wire.name: supervisor.restarts[wire.name] for wire in options["wires"]}

        def expiry() -> float | None:
            return certificates.expiry if certificates else None

        served = MetricsSite(
            reactor,
            options["metrics-address"],
            site(Collector(connections, restarts, expiry), trouble),
        )
        # The first to start and the last to stop: it answers while the others drain.
        metrics.append(ChildSpec("metrics", lambda died: served, permanent=False))
    supervisor = Supervisor(
        [
            *metrics,
            # It would be no use to restart it: the connections that it knows would be gone.
            ChildSpec("connections", lambda died: connections, permanent=False),
            *map(listenerFor, options["wires"]),
            ChildSpec(
                "signals",
                lambda died: Signals(reactor, connections.hurry, reloads),
            ),
            ChildSpec("notifier", lambda died: notifier),
        ],
        RestartIntensity(reactor.seconds),
        lambda: fail(reactor),
    )
    supervisor.setName("kvserver")
    return supervisor
