"""
How many CPUs may be used.
"""

import os
from pathlib import Path

import pytest

from kvserver.workers.cpus import available

PLENTY = 64
"""
More CPUs than a quota of these tests allows.
"""


@pytest.fixture(autouse=True)
def _affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(PLENTY)))


class Groups:
    """
    Control groups in a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.membership = folder / "membership"

    def write(self, name: str, text: str) -> None:
        """
        Set a file of a control group.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def available(self, membership: str) -> int:
        """
        Ask, as a process of these control groups.
        """
        self.membership.write_text(membership)
        return available(self.membership, self.folder)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    """
    Control groups without a quota.
    """
    return Groups(tmp_path)


def test_affinity(groups: Groups) -> None:
    """
    Without control groups, the affinity counts.
    """
    assert available(groups.membership, groups.folder) == PLENTY
    assert groups.available("0::/\n") == PLENTY


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("200000", 2), ("150000", 2), ("10000", 1), ("100000000", PLENTY), ("max", PLENTY), ("x", 64)],
)
def test_version2(groups: Groups, quota: str, cpus: int) -> None:
    """
    A quota of version 2 is rounded up.
    """
    groups.write("a/b/cpu.max", f"{quota} 100000\n")
    assert groups.available("0::/a/b\n") == cpus


def test_above(groups: Groups) -> None:
    """
    The least quota on the way to the root counts.
    """
    groups.write("a/cpu.max", "300000 100000\n")
    groups.write("a/b/cpu.max", "500000 100000\n")
    groups.write("cpu.max", "max 100000\n")
    assert groups.available("0::/a/b\n") == 3


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("quota", "cpus"), [("250000", 3), ("-1", PLENTY)])
def test_version1(groups: Groups, folder: str, quota: str, cpus: int) -> None:
    """
    So does a quota of version 1.
    """
    groups.write(f"{folder}/a/cpu.cfs_quota_us", quota)
    groups.write(f"{folder}/a/cpu.cfs_period_us", "100000")
    assert groups.available("4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n") == cpus
