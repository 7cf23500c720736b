"""Throughput through the exit, to a server that the person names.

The project has no server for this, and the program chooses none: the server learns the exit's address, so the person
names it. One download over one connection is read for some seconds and discarded. Server, exit, link and this machine
all affect the result.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from ..address import Destination, reachable
from ..base.text import milliseconds, size
from ..errors import CryprqError
from ..fronts.listener import MixedListener
from ..service.client_parts import listener_settings
from .checks import CheckVerdict, Context, fail, ok, skip, warn
from .reach import linked

SECONDS: Final = 8.0
BYTES: Final = 100_000_000
"""Whichever comes first ends the measurement."""
LEAST: Final = 1_000_000
"""Fewer bytes say little about a line."""
FIRST_SECONDS: Final = 15.0
PIECE: Final = 1 << 16


async def throughput(context: Context) -> CheckVerdict:
    if context.speed is None:
        return skip(
            "give --speed URL of a large file to measure it (there is no server of ours to measure against)"
        )
    if not context.speed.startswith(("http://", "https://")):
        return fail(
            "--speed takes a URL that begins with http:// or https://", "name a large file on a web server"
        )
    config = context.client_config
    if context.link is not None:
        settings = replace(listener_settings(config), listen=Destination("127.0.0.1", 0), credentials=None)
        listener = MixedListener(context.link, settings)
        proxy = listener.start()
        context.closing.append(listener.stop)
        return await _download(context, context.speed, proxy)
    if linked(context) and config.credentials() is None:
        return await _download(context, context.speed, reachable(config.listen))
    return skip("the running proxy wants a password, which is kept as a digest here: stop it, then measure")


async def _download(context: Context, url: str, proxy: Destination) -> CheckVerdict:
    import aiohttp  # a third of a second

    got, started = 0, time.monotonic()
    first = last = started
    try:
        async with (
            asyncio.timeout(FIRST_SECONDS + SECONDS),
            aiohttp.ClientSession(headers={"Accept-Encoding": "identity"}) as web,
            web.get(
                url, proxy=f"http://{proxy}", timeout=aiohttp.ClientTimeout(sock_read=FIRST_SECONDS)
            ) as answer,
        ):
            if answer.status != 200:
                return fail(
                    f"the server answers {answer.status} instead of a file", "give another URL with --speed"
                )
            first = time.monotonic()
            with context.progress("measuring") as report:
                async for piece in answer.content.iter_chunked(PIECE):
                    got += len(piece)
                    last = time.monotonic()
                    report(got, answer.content_length or 0)
                    if last - first > SECONDS or got > BYTES:
                        break
    except TimeoutError:
        if not got:
            return fail(f"nothing came within {FIRST_SECONDS:g} s", "does the URL work without the proxy?")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return fail(
            f"the download failed: {type(error).__name__}: {error}", "does the URL work without the proxy?"
        )
    except CryprqError as error:
        return fail(str(error), "see the link above")
    rate = got / max(last - first, 1e-3)
    text = f"{size(got)} came at {size(rate)}/s ({rate * 8 / 1e6:.1f} Mbit/s), the first byte after "
    text += milliseconds(first - started)
    if got < LEAST:
        return warn(f"{text}; that is too little to measure", "give the URL of a larger file")
    return ok(text)
