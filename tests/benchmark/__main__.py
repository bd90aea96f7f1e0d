"""
Measures the real daemon, as C{twistd -n kvserver} starts it, and its peers, in turn and in the same
run, and writes what has come out.

    python -m tests.benchmark --output tests/benchmark    about ten minutes
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
from tests.clients import manyDescriptors

REPEAT = 5
"""
How often all of it is measured. The medians count.
"""

GROWTH = (1, 10, 50, 100, 1_000, 10_000)
"""
How many clients there are for ping-pong.
"""


@dataclass(frozen=True)
class Workload:
    """
    What the load does.

    @ivar name: What it is called in the results.

    @ivar arguments: What it is told; then follows for how long.
    """

    name: str
    arguments: tuple[str, ...]


WORKLOADS = (
    *(Workload(f"ping-pong {n}", ("exchange", str(n), "1", "64")) for n in GROWTH),
    Workload("pipelined", ("exchange", "16", "100", "64")),
    Workload("bulk", ("exchange", "4", "4", "65536")),
    Workload("connect", ("connect", "16", "64")),
)


@contextlib.contextmanager
def loading(program: str, server: Running, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """
    The load, ready to begin.
    """
    with subprocess.Popen(
        [program, str(server.port), *arguments],
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
    before = server.memory()
    with loading(program, server, "hold", str(clients)):
        return (server.memory() - before) / clients


def exchange(program: str, server: Running, workload: Workload, seconds: float) -> dict[str, float]:
    """
    Let the load run.

    @return: What it has measured, and the server's CPU time for each line, in us.
    """
    with loading(program, server, *workload.arguments, str(seconds)) as process:
        assert process.stdin
        assert process.stdout
        before = server.cpu()
        process.stdin.write("\n")
        process.stdin.flush()
        said: dict[str, float] = json.loads(process.stdout.readline())
        used = server.cpu() - before
    return {
        "cpu": used / said["lines"] * 1e6,
        "lines": said["lines"] / said["seconds"],
        "bytes": said["bytes"] / said["seconds"],
        "p50": said["p50"],
        "p99": said["p99"],
        "busy": used / said["seconds"],
        "load": said["load"],
    }


def measure(
    server: Server, program: str, folder: Path, quick: bool
) -> dict[tuple[str, str], dict[str, float]]:
    """
    Start a server once, and measure all there is to measure.

    @return: For each server and workload what has been measured, by name.
    """
    clients = 100 if quick else 10_000
    with running(server, folder) as started:
        # What it frees after its start it has freed by then.
        time.sleep(0.1)
        found: dict[tuple[str, str], dict[str, float]] = {
            (server.name, "start"): {"seconds": started.start},
            (server.name, "rest"): {"memory": float(started.memory())},
        }
        if server.name == EMPTY:
            return found
        found[server.name, "held"] = {"memory": held(program, started, clients)}
        for workload in WORKLOADS:
            if not (quick and int(workload.arguments[1]) > clients):
                found[server.name, workload.name] = exchange(
                    program, started, workload, 0.1 if quick else 1.0
                )
    return found


def main(arguments: list[str]) -> None:
    """
    Measure, and write the results.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--output", type=Path, help="the folder that results.* are written to")
    options = parser.parse_args(arguments)
    samples: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as scratch, manyDescriptors(10_100):
        folder = Path(scratch)
        program = load(folder)
        found = servers(folder, not options.quick)
        peers = versions(folder)
        for number in range(1 if options.quick else REPEAT):
            for server in found:
                print(f"{number + 1}: {server.name}", file=sys.stderr)
                for key, values in measure(server, program, folder, options.quick).items():
                    for name, value in values.items():
                        samples[key][name].append(value)
    results = {
        key: {name: median(values) for name, values in some.items()}
        for key, some in samples.items()
    }
    names = [server.name for server in found]
    text = table(results, names, [workload.name for workload in WORKLOADS], peers)
    print(text)
    if options.output:
        (options.output / "results.rst").write_text(text)
        (options.output / "results.svg").write_text(chart(results, GROWTH))


if __name__ == "__main__":
    main(sys.argv[1:])
