"""
A TCP line echo daemon, as a Twisted plugin: C{twistd -n kvserver --port 4040}.

The rooms, from the command line down to the wire; each imports only from those below it::

    tap           the command line, and the assembly of the service tree
    notify        what the service manager hears of us
    supervisor    starts the children in order, restarts the one that dies, stops them in reverse
    process       how the process ends, what does not end it, by which clock it goes
    wire          what a connection comes by: layers, and where it is listened for
    metrics       what others can see of us over HTTP
    listener      one listening socket, that notices its own death
    route         what a connection passes between accept(2) and its protocol
    tls, proxy    TLS, a kind of transport, and its handshake; the PROXY header
    certificates  what TLS shows
    accesslog     one record a connection
    connections   who is connected, who may connect, how they leave
    transport     an accepted connection: its bytes, its record
    poller        watches the sockets of all connections, for the reactor
    stage         what a connection passes before its protocol, and after it
    address       where to listen
    record        what is known of one connection
    served        finds what is served: the echo, or a protocol of somebody's own
    factory       a protocol for each connection
    protocol      the echo contract
    interfaces    what a protocol may say besides
    examples      a protocol that knows nothing of all this

The service tree::

    Supervisor "kvserver"   one_for_one; more than 3 restarts in 5 s end the process with status 1
    |-- MetricsSite         with --metrics; first, so that it still answers while the others drain
    |-- Connections         every live connection; temporary: one that fails is never restarted
    |-- Listener tcp:4040   permanent: it is restarted when its socket dies
    |-- Listener ...        one for each --listen
    |-- Signals             HUP, and a second TERM or INT
    `-- Notifier            systemd: READY last, STOPPING first, WATCHDOG between
"""

__version__ = "0.1.0"
