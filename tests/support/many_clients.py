"""Many clients in one process, where one process for each would take most of a test's time.

python -m tests.support.many_clients FILE...     a configuration each; all stop on SIGTERM
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

from cryprq_proxy.base.log import setup
from cryprq_proxy.config.client import load_client
from cryprq_proxy.process.lifecycle import Stop, run
from cryprq_proxy.service.client import run_client


async def clients(files: list[Path], stop: Stop) -> None:
    async with asyncio.TaskGroup() as group:
        for file in files:
            load = partial(load_client, file)
            group.create_task(run_client(load(), load, stop))


if __name__ == "__main__":
    setup("info", "text")
    run(partial(clients, [Path(name) for name in sys.argv[1:]]))
