"""
How many CPUs this process may use.
"""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""
Where the control groups are mounted, of version 2 or of version 1.
"""

MEMBERSHIP = Path("/proc/self/cgroup")
"""
In which control groups this process is (cgroups(7)).
"""


def available(membership: Path = MEMBERSHIP, groups: Path = CGROUPS) -> int:
    """
    Return the smaller one of the CPU affinity and the quota of the control group, rounded up.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = _quota(membership, groups)
    return affinity if quota is None else min(affinity, max(1, math.ceil(quota)))


def _quota(membership: Path, groups: Path) -> float | None:
    """
    Return the least quota of the control group and those above it, in CPUs. None: there is none.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    least: float | None = None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, read = groups, _quotaV2
        elif "cpu" in controllers.split(","):
            folder, read = groups / controllers, _quotaV1
            if not folder.exists():
                folder = groups / "cpu"
        else:
            continue
        # In a container, the path may be one of the host. What is above still counts.
        for part in [folder, *_below(folder, path)]:
            quota = read(part)
            if quota is not None:
                least = quota if least is None else min(least, quota)
    return least


def _below(folder: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [folder.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]


def _quotaV2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quotaV1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota < 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
