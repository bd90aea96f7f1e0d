"""
The command line of the plugin. C{twistd} looks here for L{Options} and L{makeService}.
"""

import getopt
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import twisted
from twisted.logger import LogLevel
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

if sys.platform != "linux":
    # What follows needs epoll, and options of sockets that only Linux has.
    raise SystemExit(f"kvserver: needs Linux, and this is {sys.platform}")

from kvserver import __version__
from kvserver.configuration import DEFAULT_PORT, Configuration, configure
from kvserver.helptext import formatHelp
from kvserver.listening import inherited
from kvserver.operations import notify
from kvserver.operations.logstream import protectLog
from kvserver.supervision.files import settleFiles
from kvserver.supervision.process import useMonotonicClock
from kvserver.supervision.supervisor import Supervisor
from kvserver.tree import assemble


class Options(UsageOptions):
    """
    The options of the command line.
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
            "PEM file for tls: the certificate, followed by its chain.",
        ],
        [
            "tls-private-key",
            None,
            None,
            "PEM file for tls: the private key of the certificate, without a passphrase.",
        ],
        [
            "tls-client-ca",
            None,
            None,
            "PEM file for tls: the authorities that must have signed the client's certificate.",
        ],
        [
            "max-connections",
            None,
            "0",
            "Stop accepting at N connections; further clients wait in the backlog until one ends. "
            "[default: 0, as many as the limit of file descriptors allows]",
        ],
        [
            "max-connections-per-source",
            None,
            "0",
            "Close a new connection from an address (IPv6: a /64) that already has N. "
            "[default: 0, no limit]",
        ],
        [
            "idle-timeout",
            None,
            "0",
            "Close a connection after this time without a byte in either direction. "
            "[default: 0, never]",
        ],
        [
            "write-timeout",
            None,
            "60",
            "Reset a client that leaves its echo unread for this time. [default: 60]",
        ],
        [
            "drain-timeout",
            None,
            "15",
            "How long a stop waits for connections to come to rest. Then those that are still busy "
            "are reset. [default: 15]",
        ],
        [
            "drain-delay",
            None,
            "0",
            "How long after the signal to stop clients are still accepted while /readyz is 503, so "
            "that balancers leave first. Then the drain begins. [default: 0]",
        ],
        [
            "access-log",
            None,
            None,
            "Write one JSON record per connection to this file; -: to the log. [default: none]",
        ],
        [
            "workers",
            None,
            None,
            "Serve from this many processes; auto: one for each CPU. "
            "[default: one process, without workers]",
        ],
        [
            "replace-timeout",
            None,
            None,
            "How long a worker that USR2 has replaced waits for its last connections before it "
            "drains. [default: 0, for ever]",
        ],
        [
            "protocol",
            None,
            None,
            "Serve this instead of the echo: a Protocol class, a Factory, or a callable that "
            "returns one, as package.module.Name.",
        ],
        [
            "banner",
            None,
            None,
            "Begin each connection with this line; %h: host name, %l: listener, %c: client, "
            "%w: worker, %%: a percent sign. [default: none]",
        ],
        [
            "metrics",
            None,
            None,
            "Serve the operations site (/, /metrics, /readyz and more) on this Twisted endpoint, "
            "as tcp:9464:interface=127.0.0.1. [default: none]",
        ],
    ]
    longdesc = (
        "A TCP line echo daemon: each line comes back when it is complete, byte for byte. The same "
        "options follow kvserver, twistd -n kvserver (in the foreground), twistd kvserver (as a "
        "daemon) and twist kvserver."
    )

    configuration: Configuration
    served: ClassVar[str] = "kvserver.echo.factory.EchoFactory"
    """
    The factory that is served without C{--protocol}. Another plugin can set its own here.
    """

    def __init__(self) -> None:
        super().__init__()
        # getopt takes --prot for --protocol, until a version has another option that begins so. It
        # can't if there are always two.
        self.longOpt *= 2
        self["listen"] = []
        self["proxy-trusted"] = []

    def getUsage(self, width: int | None = None) -> str:
        """
        Return the text of C{--help}.
        """
        return formatHelp(self, self.longdesc)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse the command line.

        @raise UsageError: The command line is wrong, and is not that of a command.

        @raise SystemExit: The command line of C{kvserver}, C{twistd} or C{twist} is wrong. The one
            line is on standard error, and the status is 64, so that a service manager does not try
            again. For a C{UsageError} the last two would print that line below their whole usage,
            and exit with different statuses: C{twist} with 64, C{twistd} of Twisted 26.10 with 1,
            and older ones with 0, as if all were well.
        """
        try:
            try:
                super().parseOptions(options)
            except UsageError as error:
                if not isinstance(error.__context__, getopt.error):
                    raise
                reason = str(error).replace("not a unique prefix", "not recognized")
                raise UsageError(f"{reason}: try --help") from error
        except UsageError as error:
            if self.parent is None:
                raise
            print(f"kvserver: {error}", file=sys.stderr)
            raise SystemExit(os.EX_USAGE) from error

    opt_h = UsageOptions.opt_help

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
        self["proxy-trusted"].append(network)

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

        @raise UsageError: There is an argument.
        """
        if args:
            raise UsageError(
                f"unexpected argument {args[0]!r}: kvserver takes options only: try --help"
            )

    def postOptions(self) -> None:
        """
        Check every value, and build the configuration from them.

        @raise UsageError: A value is wrong. The message names the option and the value, and says
            what is accepted.

        @raise CannotStart: C{twistd} can't write its pid file or its log.
        """
        self.configuration = configure(self, self.served, os.environ)
        if self.parent is not None:
            settleFiles(self.parent)


def makeService(options: Options, reactor: Any = None) -> Supervisor:
    """
    Assemble the service tree.

    @param options: The parsed command line.

    @param reactor: The reactor to run on; by default the global one.

    @raise CannotStart: The certificates can't be used. The message says why.
    """
    if reactor is None:
        from twisted.internet import reactor

        useMonotonicClock(reactor)
    inherited.forgetEnvironment(os.environ)
    notify.forgetEnvironment(os.environ)
    if options.parent is not None:
        # A command runs it, and logs somewhere.
        protectLog(options.parent, reactor)
    # twistd has no log levels, and would always show the debug messages.
    verbose = options.parent is not None and options.parent.get("logLevel") is LogLevel.debug
    return assemble(options.configuration, reactor, verbose)
