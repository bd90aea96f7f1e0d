"""
Lays out the text of C{--help}: groups of options, signals, exit statuses, examples.
"""

import textwrap
from collections.abc import Iterable, Iterator

from twisted.python.usage import Options

WIDTH = 80
"""
The most columns of a line.
"""

_COLUMN = 26
"""
Where the meaning of an option begins.
"""

GROUPS: dict[str, dict[str, str]] = {
    "Listening": {"port": "PORT", "interface": "ADDRESS", "listen": "DESCRIPTION"},
    "TLS": {"tls-certificate": "FILE", "tls-private-key": "FILE", "tls-client-ca": "FILE"},
    "PROXY protocol": {"proxy-trusted": "NETWORK"},
    "Limits": {
        "max-connections": "N",
        "max-connections-per-source": "N",
        "idle-timeout": "TIME",
        "write-timeout": "TIME",
    },
    "Workers": {"workers": "N|auto", "replace-timeout": "TIME"},
    "Stopping": {"drain-timeout": "TIME", "drain-delay": "TIME"},
    "Observing": {
        "access-log": "FILE",
        "metrics": "DESCRIPTION",
        "log-format": "text|json",
        "log-level": "LEVEL",
    },
    "Protocol": {"protocol": "NAME", "banner": "TEXT"},
    "Help": {"help": "", "version": ""},
}
"""
The long options, with the placeholders of their values. An option that is in none of the groups,
such as one that another plugin adds, goes to the last.
"""

_REST = """
TIME is in seconds, with a fraction or a unit if you like: 1.5, 30s, 5m, 1h.
DESCRIPTION is a Twisted endpoint, as tcp:4040:interface=127.0.0.1 or
unix:/run/echo.sock, for --listen also after tls:, proxy: or proxy:tls:. In a
value colons are escaped, in quotes: 'tcp:4040:interface=\\:\\:1'.

Environment:
  PORT        The default of --port.

Signals:
  TERM, INT   Drain and stop. A second one resets what is left, and stops now.
  HUP         Load the certificates again, and reopen the access log. It stops
              the daemon only if its terminal has gone.
  USR2        With --workers: replace the workers, one after the other.

Exit status:
  0    Help or version was shown, or the terminal has gone.
  1    It could not start, or it gave up after more than 3 restarts in 5 s. One
       line says why; the next try may succeed.
  64   The command line, or PORT, is wrong.
  After TERM or INT it dies of that signal: a shell shows 143 or 130.

Examples:
  kvserver                           in the foreground; ^C stops it
  kvserver -p 4041 -i 127.0.0.1      for clients on this host only
  PORT=4041 kvserver                 the port from the environment
  kvserver -l unix:/tmp/echo.sock -l tls:tcp:4443
      --tls-certificate=server.pem --tls-private-key=server.key
                                     a UNIX socket, and TLS
  kvserver -l proxy:tcp:4041 --proxy-trusted=192.0.2.0/24
                                     behind a balancer
  twistd --pidfile=/run/kvserver.pid --logfile=/var/log/kvserver.log kvserver
                                     as a daemon, with the same options
  telnet 127.0.0.1 4040              talk to it
"""


def formatHelp(options: Options, description: str) -> str:
    """
    Return the text of C{--help}, without its synopsis.

    @param options: The options.

    @param description: The first sentences.
    """
    shorts = {name: key for key, name in options.synonyms.items() if len(key) == 1}
    placed = {name for group in GROUPS.values() for name in group}
    *_, last = GROUPS
    lines = textwrap.wrap(description, WIDTH)
    for title, group in GROUPS.items():
        names = [name for name in group if name in options.docs]
        if title == last:
            names += sorted(_longNames(options) - placed)
        if names:
            lines += ["", f"{title}:"]
        for name in names:
            lines += _formatOption(name, shorts.get(name), group.get(name), options.docs[name])
    return "\n".join(lines) + "\n" + _REST


def _longNames(options: Options) -> set[str]:
    return {name.removesuffix("=") for name in options.longOpt}


def _formatOption(
    name: str, short: str | None, placeholder: str | None, meaning: str
) -> Iterator[str]:
    value = f"={placeholder}" if placeholder else ""
    shown = f"  {f'-{short}, ' if short else '    '}--{name}{value}"
    wrapped: Iterable[str] = textwrap.wrap(" ".join(meaning.split()), WIDTH - _COLUMN)
    first, *others = wrapped
    if len(shown) + 2 > _COLUMN:
        yield shown
        shown = ""
    yield shown.ljust(_COLUMN) + first
    for line in others:
        yield " " * _COLUMN + line
