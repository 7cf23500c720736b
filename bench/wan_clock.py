"""A server of bench/wan.py that speaks first: it says its time on a connection when a pause is over, as often as asked.

    python bench/wan_clock.py     on port 81, until it is ended

Asked with the seconds of a pause, as 8 bytes, it answers behind the pause with the time of the clock that all hosts of
a lab share. So a NAT that has forgotten a flow is met by the end that cannot mend it by a datagram of its own.
"""

from __future__ import annotations

import asyncio
import struct
import time
from contextlib import suppress

PORT = 81
TIME = struct.Struct("!d")
"""Seconds: of a pause, and of the monotonic clock."""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            [pause] = TIME.unpack(await reader.readexactly(TIME.size))
            await asyncio.sleep(pause)
            writer.write(TIME.pack(time.monotonic()))
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(answer, "0.0.0.0", PORT)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
