"""
The command line.
"""

import argparse
import math
import os
import re
from collections.abc import Callable
from typing import Any, NoReturn

from kvserver.check.rules import RULES
from kvserver.check.stream import LONGEST
from kvserver.check.target import GRAMMAR, parseSource, parseTarget

_UNITS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_EXAMPLES = """\
examples:
  kvcheck tcp:lb.example:4040
      try the echo contract through this path, rule by rule
  kvcheck tls:lb.example:4443 --connections 50 --rate 1000 --duration 60
      1,000 lines a second for a minute, each checked byte for byte
  kvcheck tcp:lb.example:4040 --soak
      until Ctrl-C: what does a failover or a restart cost?

exit status: 0 all well; 1 the path broke a rule, or lost something; 2 wrong usage, or no
connection; 3 --max-p99 was exceeded. The fields of --json: man kvcheck.
"""


class UsageError(Exception):
    """
    The command line is wrong. Says which option, which value, and what is accepted.
    """


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(re.sub(r"^argument ((?:-\w/)?--[\w-]+|TARGET): ", r"\1: ", message))


def _number(least: float, most: float, what: str, kind: type = int) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


def parseDuration(text: str) -> float:
    """
    A time: seconds, or a number with C{us}, C{ms}, C{s}, C{m} or C{h}.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(us|ms|s|m|h|)", text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time above 0, as 60, 5ms, 500us, 10m or 2h"
        )
    return value


def _sizes(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text)
    low, high = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= low <= high <= LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not LOW:HIGH, two lengths from 1 to {LONGEST} bytes, as 10:100000"
        )
    return low, high


def _plot(text: str) -> str:
    if not text.endswith((".svg", ".png")):
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .svg nor in .png")
    return text


def _converted(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def newParser(version: str) -> argparse.ArgumentParser:
    """
    All options.
    """
    parser = _Parser(
        prog="kvcheck",
        description="Prove what the path to an echo does to the bytes that cross it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("target", type=_converted(parseTarget), metavar="TARGET", help=GRAMMAR)
    add("--version", action="version", version=version)
    add(
        "--timeout",
        type=parseDuration,
        default=10.0,
        metavar="TIME",
        help="bound of each wait: to connect, for an answer, for the close (10 s)",
    )
    add("--banner", action="store_true", help="expect one line, of any text, before the echo")
    group = parser.add_argument_group("rules (tried unless an option of the load is given)")
    add = group.add_argument
    names = ", ".join(RULES)
    add(
        "--rule",
        action="append",
        choices=RULES,
        metavar="NAME",
        help=f"try only this one; may be repeated: {names}",
    )
    add("--idle", type=parseDuration, metavar="TIME", help="try the rule idle, with that silence")
    add("--server-log", metavar="FILE", help="the server's access log, for reset, client-address")
    group = parser.add_argument_group("load")
    add = group.add_argument
    many = _number(1, 100_000, "a number of connections from 1 to 100000")
    add("--connections", type=many, metavar="N", help="connections at once (1)")
    rate = _number(0.001, 10_000_000, "a number of lines a second from 0.001 to 10000000", float)
    add("--rate", type=rate, metavar="N", help="lines a second, all connections together")
    depth = _number(1, 1_000_000, "a number of lines from 1 to 1000000")
    add("--depth", type=depth, metavar="N", help="lines in flight on a connection (16)")
    lines = _number(1, 10**15, "a number of lines from 1 on")
    add("--lines", type=lines, metavar="N", help="stop after that many, all connections together")
    add("--duration", type=parseDuration, metavar="TIME", help="stop after that time (10 s)")
    add("--churn", type=lines, metavar="N", help="reconnect after that many lines")
    add("--soak", action="store_true", help="go on until Ctrl-C, and reconnect by itself")
    add("--max-p99", type=parseDuration, metavar="TIME", help="exit with 3 if it is exceeded")
    group = parser.add_argument_group("lines")
    add = group.add_argument
    size = _number(1, LONGEST, f"a length from 1 to {LONGEST} bytes")
    add("--size", type=size, metavar="BYTES", help="length of a line, its LF included (64)")
    add("--sizes", type=_sizes, metavar="LOW:HIGH", help="lengths between these two")
    add("--binary", action="store_true", help="all byte values but LF, not only printable ones")
    group = parser.add_argument_group("TLS")
    add = group.add_argument
    add("--ca", metavar="FILE", help="trust these authorities (PEM), not those of the system")
    add("--certificate", metavar="FILE", help="show this certificate (PEM)")
    add("--private-key", metavar="FILE", help="its key, if it is in another file")
    add("--server-name", metavar="NAME", help="the name in the server's certificate")
    add("--insecure", action="store_true", help="accept any certificate")
    group = parser.add_argument_group("PROXY header")
    add = group.add_argument
    version_ = _number(1, 2, "a version of the PROXY protocol: 1 or 2")
    add("--proxy-version", type=version_, metavar="1|2", help="its version (2)")
    add(
        "--proxy-source",
        type=_converted(parseSource),
        metavar="ADDRESS",
        help="whom it names: 192.0.2.1, 192.0.2.1:1024, [2001:db8::1]:1024 (our end)",
    )
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--json", action="store_true", help="one document on standard output, and nothing else")
    add("--plot", type=_plot, metavar="FILE", help="a picture of the latencies, .svg or .png")
    add("--hdr", metavar="FILE", help="HdrHistogram's table of percentiles")
    return parser


_LOAD = ("connections", "rate", "depth", "lines", "duration", "churn", "soak")

_LOAD_ONLY = ("max_p99", "plot", "hdr")

_RULES_ONLY = ("rule", "idle", "server_log")

_OF_LAYER = {
    "tls": ("ca", "certificate", "private_key", "server_name", "insecure"),
    "proxy": ("proxy_version", "proxy_source"),
}
"""
The options that need a layer.
"""


def parseArguments(arguments: list[str], version: str) -> argparse.Namespace:
    """
    What the command line says, as a namespace that has C{isLoad} besides.

    @raise UsageError: It is wrong.
    """
    options = newParser(version).parse_args(arguments)
    given = [name for name in _LOAD if getattr(options, name)]
    options.isLoad = bool(given)
    # In the order of what follows from what.
    for name in _RULES_ONLY:
        if options.isLoad and getattr(options, name) is not None:
            raise UsageError(f"{_option(name)}: not with a load ({_option(given[0])})")
    for name in _LOAD_ONLY:
        if getattr(options, name) is not None and not options.isLoad:
            raise UsageError(f"{_option(name)}: only with a load, such as --duration 10")
    if options.size is not None and options.sizes is not None:
        raise UsageError("--sizes: not with --size")
    for layer, names in _OF_LAYER.items():
        for name in names:
            isGiven = getattr(options, name) not in (None, False)
            if isGiven and layer not in options.target.layers:
                raise UsageError(f"{_option(name)}: only with a target of {layer}:")
    if options.private_key is not None and options.certificate is None:
        raise UsageError("--private-key: only with --certificate")
    isNamed = options.target.host or options.server_name or options.insecure
    if "tls" in options.target.layers and not isNamed:
        raise UsageError("--server-name: a target of tls:unix: needs it, or --insecure")
    for name in ("plot", "hdr"):
        path = getattr(options, name)
        if path is not None:
            _checkWritable(name, path)
    return options


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _checkWritable(option: str, path: str) -> None:
    """
    @raise UsageError: The file can't be written.
    """
    existed = os.path.lexists(path)
    try:
        with open(path, "ab"):
            pass
        if not existed:
            os.unlink(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--{option}: {path!r} can't be written: {reason}") from None
