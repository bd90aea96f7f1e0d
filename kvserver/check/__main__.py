"""
C{kvcheck}: from the arguments to the exit status.
"""

import argparse
import gc
import json
import random
import signal
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from kvserver import __version__
from kvserver.check import text
from kvserver.check.contract import DESCRIPTORS, raiseDescriptors
from kvserver.check.faults import LISTED
from kvserver.check.giving import DEPTH, DURATION, Plan
from kvserver.check.latency import Interval, Latency, MissingExtra
from kvserver.check.load import Load
from kvserver.check.options import UsageError, parseArguments
from kvserver.check.path import Check, Path
from kvserver.check.report import document
from kvserver.check.rules import RULES, tryRules
from kvserver.check.run import Run, Settings
from kvserver.check.screen import say, screenFor
from kvserver.check.serverlog import ServerLog
from kvserver.check.target import Address, clientContext, resolve

FAILED = 2
"""
The exit status of wrong usage, and when not one connection came about.
"""

SHOWN = 50
"""
The most faults and ends that are shown one by one.
"""


class CannotConnect(Exception):
    """
    Not one connection came about. Says why.
    """


def settingsOf(options: argparse.Namespace) -> Settings:
    """
    How to connect, and what to send.

    @raise UsageError: A file can't be used.
    """
    target = options.target
    context: ssl.SSLContext | None = None
    name = target.host or None if options.server_name is None else options.server_name
    if "tls" in target.layers:
        try:
            context = clientContext(
                options.ca, options.certificate, options.private_key, options.insecure
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        try:
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
        except ValueError as error:
            raise UsageError(f"--server-name: {name!r}: {error}") from None
    return Settings(
        target=target,
        context=context,
        serverName=name,
        proxyVersion=options.proxy_version or 2,
        proxySource=options.proxy_source,
        sizes=options.sizes or (options.size or 64,) * 2,
        binary=options.binary,
        timeout=options.timeout,
        hasBanner=options.banner,
    )


def planOf(options: argparse.Namespace) -> Plan:
    """
    What load is to be made.
    """
    duration = options.duration
    if duration is None and options.lines is None and not options.soak:
        duration = DURATION
    return Plan(
        connections=options.connections or 1,
        rate=options.rate,
        depth=options.depth or (None if options.rate else DEPTH),
        lines=options.lines,
        duration=duration,
        churn=options.churn,
        soak=options.soak,
    )


class Main:
    """
    One run of the program.

    @ivar status: The exit status.
    """

    def __init__(self, reactor: Any, options: argparse.Namespace) -> None:
        """
        @raise UsageError: What the options name can't be used.

        @raise MissingExtra: They need what is not installed.
        """
        self._reactor = reactor
        self._options = options
        limit = raiseDescriptors()
        if (options.connections or 0) + DESCRIPTORS > limit:
            raise UsageError(
                f"--connections: {options.connections} are too many for this process, which may "
                f"have {limit} file descriptors (ulimit -n)"
            )
        self._settings = settingsOf(options)
        self._latency = Latency() if options.isLoad else None
        if options.plot:
            from kvserver.check.plot import requireFor

            requireFor(options.plot)
        self._serverLog = None
        if options.server_log is not None:
            try:
                self._serverLog = ServerLog(options.server_log)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                path = options.server_log
                raise UsageError(f"--server-log: {path!r} can't be read: {reason}") from None
        self._screen = screenFor(sys.stdout, options.json)
        self._shown = 0
        self._held: list[Callable[[], None]] = []
        self._interrupt: Callable[[], None] = lambda: self._fail("interrupted")
        self.status = FAILED
        self._isDone = False

    def start(self) -> None:
        """
        Begin. When it is done, the reactor is stopped.
        """
        timeout = self._options.timeout
        host = self._options.target.host
        late = self._reactor.callLater(timeout, self._fail, f"{host}: no answer in {timeout:g} s")

        def resolved(found: list[Address] | str) -> None:
            if self._isDone:
                return
            late.cancel()
            if isinstance(found, str):
                self._fail(f"{self._options.target.name}: {host}: {found}")
            else:
                self._run(found)

        resolve(self._reactor, self._options.target, resolved)

    def interrupt(self) -> None:
        """
        Ctrl-C. The second one ends at once.
        """
        interrupt, self._interrupt = self._interrupt, lambda: self._fail("interrupted")
        interrupt()

    def _run(self, addresses: list[Address]) -> None:
        seed = random.SystemRandom().getrandbits(64)
        run = Run(self._reactor, time.monotonic, self._settings, addresses, seed, self._latency)
        run.faults.onFault = lambda fault: self._show(run, text.faultLine(run, fault))
        run.onEnd = lambda end: (
            self._show(run, text.endLine(run, end)) if end.ending != "closed" else None
        )
        run.start()
        done: Deferred[Any]
        if self._options.isLoad:
            find = partial(resolve, self._reactor, self._options.target)
            load = Load(run, planOf(self._options), find)

            def showInterval(interval: Interval) -> None:
                if run.opened:
                    self._screen.interval(run, interval, load.share())

            load.onInterval = showInterval
            self._interrupt = load.interrupt
            done = load.start()
        else:
            self._interrupt = lambda: self._interruptRules(run)
            path = Path(run, self._serverLog, self._options.idle)

            def tell(check: Check) -> None:
                self._write(run, partial(self._screen.check, check))

            done = ensureDeferred(tryRules(path, self._rules(), tell))
        done.addCallback(lambda checks: self._finish(run, checks))
        done.addErrback(self._broke)

    def _rules(self) -> list[str]:
        chosen = self._options.rule or [name for name in RULES if name != "idle"]
        if self._options.idle and "idle" not in chosen:
            chosen = [name for name in RULES if name in chosen or name == "idle"]
        return [name for name in RULES if name in chosen]

    def _interruptRules(self, run: Run) -> None:
        run.interrupted = True
        for connection in list(run.live):
            connection.close()

    def _show(self, run: Run, line: str) -> None:
        """
        A fault or an end, as it is seen. Many would be too many: the document has more of them.
        """
        self._shown += 1
        if self._shown <= SHOWN:
            self._write(run, partial(self._screen.trouble, line))
        elif self._shown == SHOWN + 1:
            text = f"more are only counted here; --json has {LISTED:,}"
            self._write(run, partial(self._screen.trouble, text))

    def _write(self, run: Run, write: Callable[[], None]) -> None:
        """
        If no connection comes about, nothing is written to standard output.
        """
        self._held.append(write)
        if run.opened:
            self._writeHeld()

    def _writeHeld(self) -> None:
        held, self._held = self._held, []
        for write in held:
            write()

    def _finish(self, run: Run, checks: list[Check] | None) -> None:
        run.finish()
        if not run.opened:
            why = run.whyNot or "interrupted before a connection came about"
            if not run.isInVain and checks:
                # What was asked for needs something else, and the detail says what.
                why = f"nothing was tried: {checks[0].rule}: {checks[0].detail}"
            self._fail(f"{self._options.target.name}: {why}")
            return
        self._writeHeld()
        result = document(run, checks, self._options.max_p99)
        if self._options.json:
            say(json.dumps(result), sys.stdout)
        else:
            self._screen.report(run, result)
        if self._latency is not None:
            self._writeFiles(run)
        self._end(result["status"])

    def _writeFiles(self, run: Run) -> None:
        assert self._latency is not None
        option = path = ""
        try:
            if self._options.hdr:
                option, path = "--hdr", self._options.hdr
                with open(path, "wb") as file:
                    self._latency.intended.write(file)
            if self._options.plot:
                from kvserver.check.plot import plot

                option, path = "--plot", self._options.plot
                plot(path, run)
        except OSError as error:
            text.complain(f"{option}: {path!r} can't be written: {error.strerror}")

    def _fail(self, why: str) -> None:
        if not self._isDone:
            text.complain(why)
            self._end(FAILED)

    def _broke(self, failure: Failure) -> None:
        self._end(FAILED)
        failure.printTraceback(sys.stderr)

    def _end(self, status: int) -> None:
        self._isDone = True
        self.status = status
        self._reactor.callWhenRunning(self._reactor.stop)


def main(arguments: list[str] | None = None) -> int:
    """
    Run it.

    @return: The exit status.
    """
    try:
        options = parseArguments(
            sys.argv[1:] if arguments is None else arguments, f"kvcheck {__version__}"
        )
        from twisted.internet import reactor as globalReactor

        reactor: Any = globalReactor
        # Twisted's timers go by the clock on the wall, which may be set.
        reactor.seconds = time.monotonic
        running = Main(reactor, options)
    except (UsageError, MissingExtra) as error:
        text.complain(str(error))
        return FAILED
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: reactor.callFromThread(running.interrupt))
    reactor.callWhenRunning(running.start)
    # Connections that have ended are cycles. When what was imported is left out, it costs little to
    # look for them often, and the memory of a long soak stays flat.
    gc.freeze()
    gc.set_threshold(700, 5, 5)
    reactor.run(installSignalHandlers=False)
    return running.status


if __name__ == "__main__":
    sys.exit(main())
