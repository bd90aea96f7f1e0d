"""
C{kvcheck}: the other end of the path. It sends lines to an echo through whatever stands between,
and says what came back, what did not, where and when.

The rooms, from the command line down to the bytes; each imports only from those below it::

    __main__               runs it: from the arguments to the exit status
    screen, plot, canvas   what people see: lines, tables, pictures
    text                   the words for it
    report                 what scripts see: the document
    options                the command line
    load, giving           a load: its connections, and which of them sends a line when
    rules, contract, seen  the echo contract, rule by rule; what the server has seen of us
    path, serverlog        what a rule is tried with; the server's access log
    connection             one checked connection: how it is established, and how it ends
    sending, waiting       what it sends, and what waits for it
    run                    what all connections share: their numbers, their ends, their faults
    tls, transport         the bytes of one connection: TCP, UNIX sockets, TLS
    reasons, target        why it fails; where to connect, through which layers
    timer                  a timer finer than a millisecond
    latency                histograms of times, and our own lateness
    compare                what came against what was sent
    missing, classify      what a difference was
    place, sent            where all is in its place again
    faults                 a fault, and the list of them
    stream                 what is sent, and can be generated again

The daemon imports nothing of it.
"""
