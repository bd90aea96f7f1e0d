"""
asyncio. The protocols send back bytes, and know no lines. The streams have no TLS.

    PORT=4040 [TLS_CERTIFICATE=FILE TLS_PRIVATE_KEY=FILE] python aio.py protocol|streams|uvloop
"""

import asyncio
import os
import ssl
import sys
from typing import cast


class Echo(asyncio.Protocol):
    """
    What asyncio's documentation has for an echo.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Begin.
        """
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """
        Echo.
        """
        self.transport.write(data)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """
    Echo line by line.
    """
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


def tls() -> ssl.SSLContext | None:
    """
    What the environment asks for.
    """
    certificate = os.environ.get("TLS_CERTIFICATE")
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, os.environ["TLS_PRIVATE_KEY"])
    return context


async def main(kind: str) -> None:
    """
    Listen.
    """
    where = ("127.0.0.1", int(os.environ["PORT"]))
    if kind == "streams":
        server = await asyncio.start_server(serve, *where, limit=1 << 20, backlog=1024)
    else:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, *where, backlog=1024, ssl=tls())
    await server.serve_forever()


if sys.argv[1] == "uvloop":
    import uvloop

    uvloop.run(main("protocol"))
else:
    asyncio.run(main(sys.argv[1]))
