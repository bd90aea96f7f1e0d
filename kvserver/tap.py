"""
The command line, and the assembly of the service tree.
"""

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import twisted
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from kvserver import __version__
from kvserver.connections import Connections
from kvserver.factory import EchoFactory
from kvserver.listener import Listener
from kvserver.supervisor import Supervisor

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


def _port(option: str, value: str) -> int:
    # int() alone would take '+1', ' 1', '1_0' and the digits of other scripts.
    if value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= 65535:
        return int(value)
    raise UsageError(f"{option}: {value!r} is no TCP port: give a number from 0 to 65535")


def _interface(option: str, value: str) -> str:
    if isIPAddress(value) or isIPv6Address(value):
        return value
    raise UsageError(
        f"{option}: {value!r} is no address: give an IPv4 or IPv6 address, as 127.0.0.1 or ::1"
    )


def makeService(options: Options, reactor: Any = None) -> Supervisor:
    """
    Assemble the service tree.

    @param options: What the command line said, checked.

    @param reactor: The reactor that it runs on; by default the global one.
    """
    if reactor is None:
        from twisted.internet import reactor
    connections = Connections()
    supervisor = Supervisor()
    supervisor.setName("kvserver")
    connections.setServiceParent(supervisor)
    listener = Listener(reactor, EchoFactory(connections), options["port"], options["interface"])
    listener.setServiceParent(supervisor)
    return supervisor
