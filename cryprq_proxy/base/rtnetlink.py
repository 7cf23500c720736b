"""rtnetlink(7) through pyroute2, with a bound on how long its answers may take.

The kernel drops an answer that it has no memory for and tells the socket ENOBUFS instead (netlink(7)); pyroute2 then
waits for that answer for ever, and with it whoever holds a lock meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from pyroute2 import AsyncIPRoute

SECONDS: Final = 5.0
"""For a few questions about one device."""
TABLE_SECONDS: Final = 120.0
"""For all tables: a million routes take pyroute2 a minute."""


@asynccontextmanager
async def rtnetlink(seconds: float) -> AsyncIterator[Any]:
    """An AsyncIPRoute for `seconds`. Raises NetlinkError and OSError, which TimeoutError is one of."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit, AsyncIPRoute() as kernel:
            yield kernel
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"the kernel did not answer within {seconds:g} s") from error
        raise
