"""
The C{kvserver} command of C{twistd} and C{twist}.

Every run of C{twistd}, whatever it starts, imports this file: so it names L{kvserver.tap} by string
and imports nothing of ours.
"""

from twisted.application.service import ServiceMaker

kvserver = ServiceMaker(
    "kvserver", "kvserver.tap", "A TCP line echo daemon. Its options follow its name.", "kvserver"
)
