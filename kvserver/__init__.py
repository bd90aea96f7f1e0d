"""
A TCP line echo daemon, as a Twisted plugin: C{twistd -n kvserver --port 4040}.

The rooms, from the command line down to the wire; each imports only from those below it::

    tap           the command line, and the assembly of the service tree
    supervisor    starts the children in order, stops them one by one in reverse
    listener      one listening socket
    factory       a protocol for each connection
    connections   who is connected
    protocol      the echo contract

The service tree::

    Supervisor "kvserver"
    |-- Connections         every live connection
    `-- Listener tcp:4040   the listening socket
"""

__version__ = "0.1.0"
