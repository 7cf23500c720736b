"""Makes the dashboard's pictures for the README, light and dark: the real page in Chromium, of a client that is not.

python bench/screenshots.py [DIRECTORY]      default: docs/
"""

from __future__ import annotations

import asyncio
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cryprq_proxy.address import Destination  # noqa: E402
from cryprq_proxy.web import history  # noqa: E402
from cryprq_proxy.web.events import Events  # noqa: E402
from cryprq_proxy.web.guard import new_token  # noqa: E402
from cryprq_proxy.web.server import AdminServer  # noqa: E402
from tests.support.devtools import Browser, Tab, chromium  # noqa: E402
from tests.support.web_fakes import TUN, World  # noqa: E402

MAX_SIZE = 150 << 10
SAMPLES = 20
"""Seconds that the page is shown before the picture is taken, in a fiftieth of the time."""


async def main(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        async with chromium(Path(home)) as browser:
            for scheme in ("light", "dark"):
                await shoot(browser, scheme, 1180, 1340, directory / f"dashboard-{scheme}.png")


async def shoot(
    browser: Browser,
    scheme: Literal["light", "dark"],
    width: int,
    height: int,
    to: Path,
    *,
    whole: bool = False,
) -> None:
    world = World()
    world.tun = TUN

    def clock() -> float:
        world.advance(1.0)
        return world.now

    token = new_token()
    events = Events(world, 0.02, clock)
    for _ in range(history.SAMPLES + 1):
        world.advance(history.SECONDS - 1)  # and one second with each look
        events.history.look()
    server = AdminServer(Destination("127.0.0.1", 0), world, token, events)
    address = await server.start()
    try:
        async with browser.tab() as tab:
            await tab.look(scheme, width, height)
            await tab.open(f"http://{address}/#token={token}")
            await tab.until(f"samples.length >= {history.SAMPLES + SAMPLES}")
            to.write_bytes(smaller(await tab.picture(whole=whole)))
            await report(tab, to)
    finally:
        await server.stop()


async def report(tab: Tab, to: Path) -> None:
    size = to.stat().st_size
    print(f"{to}: {size} bytes; console: {tab.console + tab.log}")
    if size > MAX_SIZE:
        raise SystemExit(f"{to} is larger than {MAX_SIZE} bytes")


def smaller(png: bytes) -> bytes:
    """The same picture with colours from a palette of 256, where it has no more, and the best that zlib does."""
    width, height, pixels = _decode(png)
    stride = width * 3
    counts: dict[bytes, int] = {}
    for position in range(0, len(pixels), 3):
        colour = pixels[position : position + 3]
        counts[colour] = counts.get(colour, 0) + 1
    palette = sorted(counts, key=counts.__getitem__, reverse=True)[:256]
    nearest = {colour: index for index, colour in enumerate(palette)}
    for colour in counts.keys() - nearest.keys():
        nearest[colour] = min(
            range(len(palette)),
            key=lambda index, c=colour: sum((a - b) ** 2 for a, b in zip(c, palette[index], strict=True)),  # type: ignore[misc]
        )
    lines = bytearray()
    for row in range(height):
        line = pixels[row * stride : (row + 1) * stride]
        lines.append(0)
        lines += bytes(nearest[line[at : at + 3]] for at in range(0, stride, 3))
    header = struct.pack("!IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", b"".join(palette)),
        (b"IDAT", zlib.compress(bytes(lines), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _decode(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and the RGB bytes of a PNG as Chromium makes it: 8 bits, RGB or RGBA, not interlaced."""
    position, data = 8, b""
    width = height = channels = 0
    while position < len(png):
        (length,) = struct.unpack_from("!I", png, position)
        kind, body = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colours = struct.unpack_from("!IIBB", body)
            assert depth == 8 and colours in (2, 6)
            channels = 3 if colours == 2 else 4
        elif kind == b"IDAT":
            data += body
        position += 12 + length
    raw, stride = zlib.decompress(data), width * channels
    above, out = bytearray(stride), bytearray()
    for row in range(height):
        start = row * (stride + 1)
        line = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], line, above, channels)
        above = line
        if channels == 4:
            line = bytearray(byte for index, byte in enumerate(line) if index & 3 != 3)
        out += line
    return width, height, bytes(out)


def _unfilter(kind: int, line: bytearray, above: bytearray, channels: int) -> None:
    """PNG section 9.2, in place."""
    for index in range(len(line)):
        left = line[index - channels] if index >= channels else 0
        up = above[index]
        corner = above[index - channels] if index >= channels else 0
        if kind == 1:
            line[index] = line[index] + left & 255
        elif kind == 2:
            line[index] = line[index] + up & 255
        elif kind == 3:
            line[index] = line[index] + (left + up >> 1) & 255
        elif kind == 4:
            guess = left + up - corner
            distance = abs(guess - left), abs(guess - up), abs(guess - corner)
            best = (left, up, corner)[distance.index(min(distance))]
            line[index] = line[index] + best & 255


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"))
