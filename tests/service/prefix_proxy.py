"""A reverse proxy below a path, as a process of its own: python prefix_proxy.py UPSTREAM_PORT keep|strip HEADER_VALUE

It prints its port. Every connection carries one request: the path loses /below where that is to be stripped, and a header value
that is not empty is sent as X-Forwarded-Prefix.
"""

import asyncio
import sys

PREFIX = "/below"


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy what comes until it ends."""
    while piece := await reader.read(1 << 16):
        writer.write(piece)
        await writer.drain()


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand one request on."""
    upstream, way, value = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.rstrip().split("\r\n")
    method, path, version = line.split(" ")
    if not path.startswith(PREFIX):
        writer.write(b"HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        return
    path = path.removeprefix(PREFIX) or "/" if way == "strip" else path
    fields = [field for field in fields if not field.lower().startswith(("connection:", "x-forwarded-prefix:"))]
    fields += ["Connection: close", *([f"X-Forwarded-Prefix: {value}"] if value else [])]
    back, out = await asyncio.open_connection("127.0.0.1", upstream)
    out.write("\r\n".join([f"{method} {path} {version}", *fields, "", ""]).encode("latin-1"))
    sending = asyncio.create_task(pass_on(reader, out))
    await pass_on(back, writer)
    sending.cancel()
    out.close()
    writer.close()


async def main() -> None:
    """Listen until the process ends."""
    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
