"""
The command C{kvserver}, which is C{python -m kvserver}, too: the daemon in the foreground. It takes
the options of C{twistd -n kvserver}, and says how it ends in the same way.
"""

import os
import platform
import signal
import sys
from typing import Any

import twisted
from twisted.application.app import startApplication
from twisted.application.service import Application, IService
from twisted.logger import (
    FilteringLogObserver,
    InvalidLogLevelError,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from kvserver import __version__
from kvserver.supervision.signals import processSignals
from kvserver.tap import Options, makeService

_log = Logger(namespace="kvserver")


class CommandOptions(Options):
    """
    The options of the plugin, and those for the log, which are else C{twist}'s.
    """

    def __init__(self) -> None:
        super().__init__()
        self["log-format"] = "text"
        # What the service asks of the command that runs it, by the names that twist has for it.
        self._log = self.parent = UsageOptions()
        self._log.update(logFile=sys.stdout, logLevel=LogLevel.info)

    def getSynopsis(self) -> str:
        """
        Return the first line of C{--help}.
        """
        return f"Usage: kvserver {self.synopsis}"

    def opt_log_format(self, name: str) -> None:
        """
        The log on standard output: text, or JSON, an object on each line. [default: text]
        """
        if name not in ("text", "json"):
            raise UsageError(f"--log-format: {name!r} is not text or json")
        self["log-format"] = name

    def opt_log_level(self, name: str) -> None:
        """
        Log from this level on: debug (each connection), info, warn, error, critical. [default:
        info]
        """
        try:
            self._log["logLevel"] = LogLevel.levelWithName(name)
        except InvalidLogLevelError:
            levels = ", ".join(level.name for level in LogLevel.iterconstants())
            raise UsageError(f"--log-level: {name!r} is not one of {levels}") from None

    def beginLogging(self) -> None:
        """
        Log from now on, what has been logged before at first.
        """
        stream = self._log["logFile"]
        if self["log-format"] == "json":
            from kvserver.operations.jsonlog import jsonLogObserver

            observer = jsonLogObserver(stream)
        else:
            observer = textFileLogObserver(stream)
        levels = LogLevelFilterPredicate(defaultLogLevel=self._log["logLevel"])
        globalLogBeginner.beginLoggingTo([FilteringLogObserver(observer, [levels])])


def main() -> None:
    """
    Run the daemon. If it can't start, the one line that says why is all that it prints.

    @raise SystemExit: The command line is wrong, or the daemon can't start.
    """
    options = CommandOptions()
    options.parseOptions()
    _log.info(
        "kvserver {version} (Twisted {twisted}, Python {python}) starts",
        version=__version__,
        twisted=twisted.__version__,
        python=platform.python_version(),
    )
    application = Application("kvserver")
    makeService(options).setServiceParent(application)
    # Twisted has no type for what it has made of the application.
    service: Any = IService(application)
    service.privilegedStartService()
    startApplication(application, False)
    options.beginLogging()
    from twisted.internet import reactor

    running: Any = reactor
    running.run()
    ended = processSignals(running).endedBy
    if ended is not None:
        # As twistd does, and as whoever has sent the signal expects.
        signal.signal(ended, signal.SIG_DFL)
        os.kill(os.getpid(), ended)


if __name__ == "__main__":
    main()
