"""
Breaks the daemon from inside, when a test says so.

Python imports this file at its start when this folder is on C{PYTHONPATH}. It takes commands, one
in a connection, at the UNIX socket that C{KVSERVER_SABOTEUR} names, and closes the connection when
it has done:

- C{shutdown}, C{close}, C{replace}, C{usurp}: the listening socket is shut down; its file
  descriptor is closed, or becomes that of a file, or of another socket that listens.
- C{accept NAME}: from now on accept(2) fails with the error of that name; C{accept}: no more.
- C{raise}: from now on a protocol that receives the line C{raise} raises an exception.
"""

import errno
import os
import socket
import threading

_listening: list[socket.socket] = []
_trouble: list[int] = []
_Socket = socket.socket


class _Sabotaged(_Socket):
    def listen(self, *backlog: int) -> None:
        super().listen(*backlog)
        _listening[:] = [self]

    def setblocking(self, flag: bool) -> None:
        super().setblocking(flag)
        # A socket from systemd listens already.
        if self.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            _listening[:] = [self]

    def accept(self) -> "tuple[socket.socket, object]":
        for number in _trouble:
            raise OSError(number, os.strerror(number))
        return super().accept()


def _obey(command: str, *arguments: str) -> None:
    if command == "accept":
        _trouble[:] = [getattr(errno, name) for name in arguments]
        return
    if command == "raise":
        from kvserver.echo.protocol import EchoProtocol

        receive = EchoProtocol.dataReceived

        def raises(self: EchoProtocol, data: bytes) -> None:
            if data == b"raise\n":
                raise ZeroDivisionError("sabotage")
            receive(self, data)

        EchoProtocol.dataReceived = raises  # type: ignore[method-assign]
        return
    (listening,) = _listening
    if command == "shutdown":
        listening.shutdown(socket.SHUT_RDWR)
    elif command == "close":
        os.close(listening.fileno())
    elif command == "replace":
        with open(os.devnull) as file:
            os.dup2(file.fileno(), listening.fileno())
    elif command == "usurp":
        with _Socket() as other:
            other.listen()
            os.dup2(other.fileno(), listening.fileno())
    else:
        raise ValueError(command)


def _serve(server: socket.socket) -> None:
    while True:
        client, _ = server.accept()
        with client:
            _obey(*client.recv(1024).decode().split())


if "KVSERVER_SABOTEUR" in os.environ:
    _server = _Socket(socket.AF_UNIX)
    _server.bind(os.environ["KVSERVER_SABOTEUR"])
    _server.listen()
    threading.Thread(target=_serve, args=(_server,), daemon=True).start()
    socket.socket = _Sabotaged  # type: ignore[misc]
