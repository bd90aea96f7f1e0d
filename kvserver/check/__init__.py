"""
C{kvcheck}: the other end of the path. It sends lines to an echo through whatever stands between,
and says what came back, what did not, where and when.

The rooms, from the command line down to the bytes; each imports only from those below it::

    __main__      runs it: from the arguments to the exit status
    text, plot    what people see: lines, tables, pictures
    report        what scripts see: the document
    load          many lines on many connections, by a schedule
    rules         the echo contract, rule by rule
    serverlog     what the server has noted: its access log
    options       the command line
    connection    one checked connection
    run           what all connections of a run share: their numbers, their ends, their faults
    transport     the bytes of one connection: TCP, UNIX sockets, TLS
    target        where to connect, through which layers
    latency       histograms, and our own lateness
    compare       what came against what was sent
    classify      what a difference was
    faults        a fault, and the list of them
    stream        what is sent, and can be generated again

The daemon imports nothing of it.
"""
