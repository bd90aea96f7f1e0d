"""
Measures the real daemon, as C{twistd -n kvserver} starts it, and its peers, in turn and in the same
run, and writes what has come out.

    python -m tests.benchmark --output tests/benchmark    about twelve minutes
    python -m tests.benchmark --only "TLS ping-pong"    a minute; only what is named like this
    python -m tests.benchmark --quick    seconds; to see that it runs, not what it measures

The load must not wait for the processor: it needs two, and nothing else should run meanwhile.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.benchmark.report import chart, table
from tests.benchmark.servers import EMPTY, Running, Server, load, running, servers, versions
from tests.support.clients import manyDescriptors

REPEAT = 5
"""
How often all of it is measured. The medians count.
"""

GROWTH = (1, 10, 50, 100, 1_000, 10_000)
"""
How many clients there are for ping-pong.
"""

HELD = {False: 10_000, True: 1_000}
"""
How many clients hold a connection, without TLS and with it.
"""


class Options(argparse.Namespace):
    """
    What the command line says.
    """

    quick: bool
    only: str
    servers: str
    output: Path | None


@dataclass(frozen=True)
class Workload:
    """
    What the load does.

    @ivar name: What it is called in the results.

    @ivar arguments: What it is told; then follows for how long.

    @ivar tls: Does it speak TLS?
    """

    name: str
    arguments: tuple[str, ...]
    tls: bool = False


PIPELINED = ("exchange", "16", "100", "64")
BULK = ("exchange", "4", "4", "65536")
CONNECT = ("connect", "16", "64")

WORKLOADS = (
    *(Workload(f"ping-pong {n}", ("exchange", str(n), "1", "64")) for n in GROWTH),
    Workload("pipelined", PIPELINED),
    Workload("bulk", BULK),
    Workload("connect", CONNECT),
    Workload("connect 1", ("connect", "1", "64")),
    Workload("TLS ping-pong 50", ("exchange", "50", "1", "64"), tls=True),
    Workload("TLS pipelined", PIPELINED, tls=True),
    Workload("TLS bulk", BULK, tls=True),
    Workload("TLS connect", CONNECT, tls=True),
)


@contextlib.contextmanager
def loading(program: str, server: Running, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """
    The load, ready to begin.
    """
    with subprocess.Popen(
        [program, server.wire, str(server.port), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "READY\n"
        yield process
        process.communicate()
    assert process.returncode == 0


def held(program: str, server: Running, clients: int) -> float:
    """
    How much memory a client takes who was served once and stays, in bytes.
    """
    server.settle()
    before = server.memory()
    with loading(program, server, "hold", str(clients)):
        return (server.memory() - before) / clients


def exchange(
    program: str, server: Running, arguments: tuple[str, ...], seconds: float
) -> dict[str, float]:
    """
    Let the load run, until a line has come back: if others use the processor a short time may be
    too short for that, and is doubled.

    @return: What it has measured, and the server's CPU time for each line, in us.
    """
    while True:
        with loading(program, server, *arguments, str(seconds)) as process:
            assert process.stdin
            assert process.stdout
            server.settle()
            before, ownBefore = server.cpu(), server.ownCPU()
            process.stdin.write("\n")
            process.stdin.flush()
            said: dict[str, float] = json.loads(process.stdout.readline())
            used, own = server.cpu() - before, server.ownCPU() - ownBefore
        if said["lines"]:
            break
        seconds *= 2
    return {
        "cpu": used / said["lines"] * 1e6,
        "own": own / said["lines"] * 1e6,
        "lines": said["lines"] / said["seconds"],
        "bytes": said["bytes"] / said["seconds"],
        "p50": said["p50"],
        "p99": said["p99"],
        "busy": used / said["seconds"],
        "load": said["load"],
    }


def measure(
    server: Server, workloads: list[Workload], program: str, folder: Path, options: Options
) -> dict[tuple[str, str], dict[str, float]]:
    """
    Start a server once, and measure.

    @return: For each server and workload what has been measured, by name.
    """
    seconds = 0.02 if options.quick else 1.0
    found: dict[tuple[str, str], dict[str, float]] = {}
    with running(server, folder) as started:
        if not options.only:
            # What it frees after its start it has freed by then.
            time.sleep(0.1)
            found[server.name, server.of("start")] = {"seconds": started.start}
            found[server.name, server.of("rest")] = {"memory": float(started.memory())}
        if server.name == EMPTY:
            return found
        # uvloop takes three times as long for a line until a first connection has ended.
        exchange(program, started, CONNECT, seconds / 5)
        if not options.only:
            clients = 100 if options.quick else HELD[server.identity is not None]
            found[server.name, server.of("held")] = {"memory": held(program, started, clients)}
        for workload in workloads:
            found[server.name, workload.name] = exchange(
                program, started, workload.arguments, seconds
            )
    return found


def chosen(server: Server, options: Options) -> list[Workload]:
    """
    What of the load a server is to take.
    """
    return [
        workload
        for workload in WORKLOADS
        if workload.tls == (server.identity is not None)
        and options.only in workload.name
        and (server.workloads is None or workload.name in server.workloads)
        and not (options.quick and int(workload.arguments[1]) > 100)
    ]


def main(arguments: list[str]) -> None:
    """
    Measure, and write the results.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument(
        "--only", default="", help="only workloads that have this in their name, and nothing else"
    )
    parser.add_argument("--servers", default="", help="only servers that have this in their name")
    parser.add_argument("--output", type=Path, help="the folder that results.* are written to")
    options = parser.parse_args(arguments, Options())
    if options.output and (options.only or options.servers):
        parser.error("--output is for the results of all workloads and servers")
    samples: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as scratch, manyDescriptors(10_100):
        folder = Path(scratch)
        program = load(folder)
        found = [
            server
            for server in servers(folder, not options.quick)
            if options.servers in server.name
            and not (options.only and (server.name == EMPTY or not chosen(server, options)))
        ]
        peers = versions(folder)
        for number in range(1 if options.quick else REPEAT):
            for server in found:
                print(f"{number + 1}: {server.of(server.name)}", file=sys.stderr)
                workloads = chosen(server, options)
                for key, values in measure(server, workloads, program, folder, options).items():
                    for name, value in values.items():
                        samples[key][name].append(value)
    results = {
        key: {name: median(values) for name, values in some.items()}
        for key, some in samples.items()
    }
    names = list(dict.fromkeys(server.name for server in found))
    text = table(results, names, [workload.name for workload in WORKLOADS], peers)
    print(text)
    if options.output:
        (options.output / "results.rst").write_text(text)
        (options.output / "results.svg").write_text(chart(results, GROWTH))


if __name__ == "__main__":
    main(sys.argv[1:])
