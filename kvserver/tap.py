"""
The command line, and the assembly of the service tree.
"""

import os
import platform
import sys
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any, ClassVar, NoReturn

import twisted
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from kvserver import __version__
from kvserver.connections import Connections, Limits, mostConnections
from kvserver.factory import EchoFactory
from kvserver.listener import Address, Listener
from kvserver.process import Signals, fail
from kvserver.supervisor import ChildSpec, RestartIntensity, Supervisor

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
    ]
    longdesc = "A TCP line echo daemon: each line comes back when it is complete, byte for byte."
    examples = """
Examples:
  twistd -n kvserver                        in the foreground; ^C stops it
  twistd -n kvserver -p 4041 -i 127.0.0.1   for clients on this host only
  PORT=4041 twistd -n kvserver              the port from the environment
  twistd --pidfile=/run/kvserver.pid --logfile=/var/log/kvserver.log kvserver
                                            as a daemon
  telnet 127.0.0.1 4040                     talk to it
"""

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
        if self["port"] is None:
            self["port"] = _port("PORT (environment)", os.environ.get("PORT", DEFAULT_PORT))
        else:
            self["port"] = _port("--port", self["port"])
        if self["interface"] is None:
            self["interface"] = ""
        else:
            self["interface"] = _interface("--interface", self["interface"])
        most = mostConnections()
        connections = "a number of connections that the hard limit of file descriptors allows,"
        for option, kind, least, greatest in (
            ("max-connections", connections, 0, most),
            ("max-connections-per-source", connections, 0, most),
            ("idle-timeout", "a number of seconds", 0, _SECONDS),
            ("write-timeout", "a number of seconds", 1, _SECONDS),
            ("drain-timeout", "a number of seconds", 0, _SECONDS),
        ):
            self[option] = _number(f"--{option}", self[option], kind, least, greatest)


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


def _interface(option: str, value: str) -> str:
    try:
        value.encode("ascii")
        address = ip_address(value)
    except ValueError:
        raise UsageError(
            f"{option}: {value!r} is not an IPv4 or IPv6 address, as 127.0.0.1 or ::1"
        ) from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        # IPv4, and not by a socket for IPv6 alone.
        return str(address.ipv4_mapped)
    return value


def makeService(options: Options, reactor: Any = None) -> Supervisor:
    """
    Assemble the service tree.

    @param options: What the command line said, checked.

    @param reactor: The reactor that it runs on; by default the global one.
    """
    if reactor is None:
        from twisted.internet import reactor
    limits = Limits(
        connections=options["max-connections"],
        perSource=options["max-connections-per-source"],
        idle=options["idle-timeout"],
        write=options["write-timeout"],
        drain=options["drain-timeout"],
    )
    connections = Connections(reactor, limits)
    factory = EchoFactory(connections)
    address = Address(options["port"], options["interface"])
    supervisor = Supervisor(
        [
            # It would be no use to restart it: the connections that it knows would be gone.
            ChildSpec("connections", lambda died: connections, permanent=False),
            ChildSpec(
                f"tcp:{address.port}",
                lambda died: Listener(reactor, address, factory, connections, died),
            ),
            ChildSpec("signals", lambda died: Signals(reactor, connections.abort)),
        ],
        RestartIntensity(reactor.seconds),
        lambda: fail(reactor),
    )
    supervisor.setName("kvserver")
    return supervisor
