"""
A TCP line echo daemon, as a Twisted plugin: C{twistd -n kvserver --port 4040}.

The map, from the command line down. Imports run downwards only::

    __main__       the command kvserver: the daemon in the foreground
    tap            the command line: Options and makeService, where twistd looks for them
    tree           assembles the service tree from a configuration
    configuration  the checked, frozen values that the tree is built from
    helptext       the text of --help
    operations/    the access log, metrics, the operations site, notifications to the manager
    listening/     the grammar of --listen, the sockets listened on, the listener, PROXY headers
    workers/       the pool of worker processes, and what runs in one
    connections/   the registry, records, limits, time-outs, drain; the transport, TLS, the poller
    supervision/   the supervisor, restart intensity, signals, how processes end, the clock
    served         finds what is served: the echo, or a protocol given by name
    echo/          the echo protocol, which is served by default
    examples/      a protocol that imports nothing from this package
    check/         kvcheck, the other end of the path; the daemon imports nothing of it
    interfaces     what a protocol can offer besides IProtocol, and what a listener needs

The service tree::

    Supervisor              one_for_one; more than 3 restarts in 5 s end the process with status 1
    |-- Signals             HUP, USR2, and a second TERM or INT
    |-- orphans             as process 1, in a container: waits for those that nobody waits for
    |-- rates               with --metrics: what has happened in the last minutes
    |-- visitors            with --metrics: the connections of the operations site
    |-- Listener metrics    with --metrics; early, so that the site still answers during the drain
    |-- access log          with --access-log
    |-- Pool                with --workers: the workers together, and what waits for one
    |-- Worker 1 .. N       with --workers; permanent: its process is restarted when it ends
    |-- Connections         every live connection; temporary: one that fails is never restarted
    |-- Listener tcp:4040   permanent: it is restarted when its socket dies
    |-- Listener ...        one for each --listen
    `-- Notifier            systemd: READY last, STOPPING first, WATCHDOG between
"""

__version__ = "0.1.0"
