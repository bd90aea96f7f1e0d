"""
A daemon that a test can break from inside.
"""

import os
import socket
from pathlib import Path

from tests.support.daemon import FOREGROUND, PATIENCE, Daemon, environment

SABOTEUR = Path(__file__).parent / "saboteur"


class Sabotaged(Daemon):
    """
    The real daemon, with the saboteur in it: C{tests/saboteur/sitecustomize.py}.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        command: tuple[str, ...] = FOREGROUND,
        descriptors: tuple[int, ...] = (),
        name: str = "kvserver",
    ) -> None:
        self._saboteur = str(folder / "saboteur")
        path = [str(SABOTEUR), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = environment(KVSERVER_SABOTEUR=self._saboteur, PYTHONPATH=os.pathsep.join(path))
        super().__init__(
            folder, *options, command=command, env=env, descriptors=descriptors, name=name
        )

    def sabotage(self, command: str) -> None:
        """
        Break something, as the saboteur's commands say. It is broken when this returns.
        """
        with socket.socket(socket.AF_UNIX) as saboteur:
            saboteur.settimeout(PATIENCE)
            saboteur.connect(self._saboteur)
            saboteur.sendall(command.encode())
            assert saboteur.recv(1) == b""
