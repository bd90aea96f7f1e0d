"""
Assembles the service tree from a configuration.
"""

import os
import time
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from kvserver.configuration import Configuration, TLSFiles
from kvserver.connections.banner import Banner
from kvserver.connections.certificates import BadCertificate, Certificates
from kvserver.connections.drain import DrainDelay
from kvserver.connections.handover import LocalHandover
from kvserver.connections.limits import maxConnectionsAllowed
from kvserver.connections.poller import Poller
from kvserver.connections.registry import Connections
from kvserver.interfaces import IHandover
from kvserver.listening.listener import Listener
from kvserver.listening.route import Route
from kvserver.listening.specification import ListenerSpec
from kvserver.operations.accesslog import AccessLogFile, AccessLogStream
from kvserver.operations.notify import Notifier
from kvserver.served import unitOf
from kvserver.supervision.orphans import orphans
from kvserver.supervision.process import exitWithFailure
from kvserver.supervision.signals import Reload, Signals
from kvserver.supervision.supervisor import (
    CannotStart,
    ChildSpec,
    RestartIntensity,
    Supervisor,
)
from kvserver.workers.cpus import available
from kvserver.workers.pool import Pool
from kvserver.workers.worker import Worker, WorkerHandover

_log = Logger(namespace="kvserver.tree")

WORKERS_PER_CPU = 4
"""
With more workers than this for each CPU, a warning is logged.
"""


def assemble(configuration: Configuration, reactor: Any, verbose: bool = False) -> Supervisor:
    """
    Assemble the service tree. Nothing listens before the tree is started.

    @param reactor: The reactor to run on.

    @param verbose: Whether to log the start and the end of each connection.

    @raise CannotStart: The certificates can't be used. The message says why.
    """
    accessLog = _accessLog(configuration.accessLog, reactor)
    connections = Connections(
        reactor,
        configuration.limits,
        accessLog.report if accessLog else None,
        verbose,
        unitOf(configuration.factory),
    )
    certificates = _certificates(configuration.tls) if configuration.tls else None
    poller = Poller(reactor)

    pool: Pool | None = None
    workers = []
    if configuration.workers:
        pool = connections.workers = Pool(
            reactor,
            poller,
            configuration.workers,
            configuration.served,
            connections,
            certificates,
            configuration.replaceTimeout,
            configuration.banner,
        )
        if not configuration.limits.maxConnections:
            connections.maxConnections = maxConnectionsAllowed(configuration.workers)
        workers = [_temporary("pool", pool), *_workers(pool, configuration.workers, reactor)]

    banner = Banner(configuration.banner) if configuration.banner else None

    def handover(isTLS: bool) -> IHandover:
        if pool is not None:
            return WorkerHandover(pool, isTLS)
        return LocalHandover(configuration.factory, certificates if isTLS else None, banner)

    def listener(spec: ListenerSpec) -> ChildSpec:
        route = Route(
            connections,
            poller,
            handover("tls" in spec.layers),
            configuration.proxyTrusted if "proxy" in spec.layers else None,
        )
        return ChildSpec(
            spec.name, lambda died: Listener(reactor, spec, route, connections, poller, died)
        )

    names = [spec.name for spec in configuration.listeners]

    def listeners() -> list[Listener]:
        return [child for child in supervisor if isinstance(child, Listener)]

    def restarts() -> dict[str, int]:
        return {name: supervisor.restarts[name] for name in names}

    def notReadyReason() -> str | None:
        if delay.isRunning:
            return "stopping"
        if not notifier.running:
            return "starting" if supervisor.running else "draining"
        if pool is not None and not pool.isReady():
            return "no worker"
        broken = [str(child.name) for child in listeners() if not child.isListening()]
        return f"not listening: {', '.join(broken)}" if broken else None

    def status() -> str:
        done = f", {connections.counts()[0]} {connections.unit} served" if connections.unit else ""
        count = len(connections)
        return f"{count} {'connection' if count == 1 else 'connections'}{done}"

    notifier = Notifier(
        reactor,
        configuration.notifySocket,
        status,
        lambda: notReadyReason() is None,
        configuration.drainDelay + configuration.limits.drainTimeout,
        pool.ready if pool else None,
    )
    delay = DrainDelay(reactor, configuration.drainDelay)

    def leave() -> Deferred[None]:
        notifier.stopService()
        return delay.begin()

    def abortDrain() -> None:
        connections.abortDrain()
        delay.abort()

    reload = Reload(
        notifier.reloading,
        [
            *([certificates.reload] if certificates else []),
            *([pool.reload] if pool else []),
            *([accessLog.reopen] if accessLog else []),
        ],
        notifier.ready,
    )
    operations = []
    if configuration.operations:
        from kvserver.operations.metrics import Collector
        from kvserver.operations.overview import Overview
        from kvserver.operations.rates import Rates
        from kvserver.operations.site import LIMITS, site

        # Clients of the site must not use up the limits of what is served: they have limits of
        # their own.
        visitors = Connections(reactor, LIMITS)
        rates = Rates(reactor, connections)
        overview = Overview(
            reactor,
            connections,
            rates,
            # The site's own is not among them.
            lambda: [child for child in listeners() if child.name in names],
            restarts,
            notReadyReason,
            configuration.drainDelay,
            pool,
        )
        collector = Collector(
            connections,
            restarts,
            lambda: certificates.expiry if certificates else None,
            pool,
        )
        pages = LocalHandover(site(reactor, collector, overview, notReadyReason))
        siteRoute = Route(visitors, poller, pages)
        siteSpec = ListenerSpec("metrics", (), configuration.operations)
        # Started before the connections, and stopped after them: the site answers during the drain.
        operations = [
            _temporary("rates", rates),
            _temporary("visitors", visitors),
            ChildSpec(
                siteSpec.name,
                lambda died: Listener(
                    reactor, siteSpec, siteRoute, visitors, poller, died, "Serving metrics"
                ),
            ),
        ]
    # It has no name: a process may have several, and its application names them as it likes.
    supervisor = Supervisor(
        [
            ChildSpec(
                "signals",
                lambda died: Signals(reactor, abortDrain, reload, pool.replace if pool else None),
            ),
            *([_temporary("orphans", orphans(reactor))] if os.getpid() == 1 else []),
            *operations,
            *([_temporary("access log", accessLog)] if accessLog else []),
            *workers,
            # A restart would not help: the new service would not know the existing connections.
            _temporary("connections", connections),
            *map(listener, configuration.listeners),
            ChildSpec("notifier", lambda died: notifier),
        ],
        # All workers may be killed at once.
        RestartIntensity(reactor.seconds, 3 + (configuration.workers or 0)),
        lambda: exitWithFailure(reactor),
        leave,
    )
    return supervisor


def _workers(pool: Pool, count: int, reactor: Any) -> list[ChildSpec]:
    def worker(number: int) -> ChildSpec:
        return ChildSpec(f"worker {number}", lambda died: Worker(pool, number, died))

    def cannotStart(failure: Failure) -> Deferred[None]:
        _log.critical("{reason}", reason=failure.getErrorMessage())
        exitWithFailure(reactor)
        # Whoever waits for the workers must not take this for their being ready.
        return Deferred()

    what = "1 worker process" if count == 1 else "{count} worker processes"
    _log.info(f"Serving from {what}", count=count)
    cpus = available()
    if count > WORKERS_PER_CPU * cpus:
        _log.warn(
            "--workers: {count} are many for the number of CPUs, {cpus}", count=count, cpus=cpus
        )
    pool.ready.addErrback(cannotStart)
    return [worker(number) for number in range(1, count + 1)]


def _temporary(name: str, service: Service) -> ChildSpec:
    return ChildSpec(name, lambda died: service, "temporary")


def _accessLog(path: str | None, reactor: Any) -> AccessLogFile | AccessLogStream | None:
    if path is None:
        return None
    return AccessLogStream(time.time) if path == "-" else AccessLogFile(path, time.time, reactor)


def _certificates(files: TLSFiles) -> Certificates:
    try:
        return Certificates(files.certificate, files.privateKey, files.clientCA)
    except BadCertificate as error:
        raise CannotStart(f"kvserver: {error}") from None
