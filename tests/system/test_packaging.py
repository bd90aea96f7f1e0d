"""
The package, as pip builds it from a checkout.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.clients import program
from tests.support.daemon import environment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """
    A copy of the checkout.
    """
    copy = tmp_path / "checkout"
    copy.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for name in "kvserver", "twisted":
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in "setup.py", "setup.cfg", "README.rst", "LICENSE":
        shutil.copy(ROOT / name, copy)
    return copy


def shipped(checkout: Path) -> set[str]:
    """
    What of a checkout belongs into the wheel.
    """
    found = (*(checkout / "kvserver").rglob("*.py"), *(checkout / "twisted").rglob("*.py"))
    found = (*found, *(checkout / "kvserver/manual").glob("*.rst"))
    units = (checkout / "kvserver/operations/units").iterdir()
    return {
        "kvserver/py.typed",
        *(str(path.relative_to(checkout)) for path in found),
        *(f"lib/systemd/system/{unit.name}" for unit in units),
    }


def wheel(checkout: Path, *subject: str) -> set[str]:
    """
    Build the wheel, as C{pip install} does, and return what is in it, without the metadata.
    """
    folder = checkout.parent / "wheels"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    done = subprocess.run(
        [*subject, *pip, *offline, f"--wheel-dir={folder}", str(checkout)],
        cwd=checkout.parent,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (built,) = folder.iterdir()
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    built.unlink()
    return {name.rpartition(".data/data/")[2] for name in names if ".dist-info/" not in name}


@pytest.mark.slow
def test_staleBuild(checkout: Path) -> None:
    """
    Modules that an earlier build has left behind are not shipped, and this one leaves none.
    """
    expected = shipped(checkout)
    stale = checkout / "build/lib/kvserver"
    stale.mkdir(parents=True)
    (stale / "gone.py").write_text("")
    assert wheel(checkout) == expected
    shutil.rmtree(checkout / "build")
    assert wheel(checkout) == expected
    assert not (checkout / "build").exists()


@pytest.mark.slow
def test_readOnly(checkout: Path) -> None:
    """
    A checkout that can't be written can be built from, and so installed from.
    """
    expected = shipped(checkout)
    for folder in checkout, *(path for path in checkout.rglob("*") if path.is_dir()):
        folder.chmod(0o555)
    before = sorted(checkout.rglob("*"))
    subject: tuple[str, ...] = ()
    if os.getuid() == 0:
        # Else modes mean nothing.
        subject = program("setpriv"), "--bounding-set=-dac_override,-dac_read_search"
    try:
        assert wheel(checkout, *subject) == expected
        assert sorted(checkout.rglob("*")) == before
    finally:
        for folder in checkout, *(path for path in checkout.rglob("*") if path.is_dir()):
            folder.chmod(0o755)
