"""The demo: exit and client in one process and one event loop, over loopback, with identities of its own.

It is the real thing but for the distance: the same roles, the same handshake, the same records. No file is read or
written, and there is no control socket.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from ..address import OWN_NAME, Destination
from ..client.dispatcher import Dispatcher
from ..client.exit_entry import PlannedExit, entry_maker
from ..client.exits import keep_up, plan_exits
from ..config.client import client_from
from ..config.exit import ExitConfig, ExitLaneTable
from ..config.keys import choose_provider
from ..crypto.identity import Identity
from ..exit.egress_policy import EgressPolicy
from ..exit.exit import Exit
from ..fronts.listener import MixedListener
from ..outbound.resolving.resolver import SystemResolver
from ..process.garbage import COLLECTOR
from ..process.lifecycle import Stop
from ..rules.engine import EVERYTHING
from ..session.retention import SlotPool
from .client_parts import listener_settings
from .exit import exit_settings
from .facts import OwnFacts
from .startup import explained


async def run_demo(listen: str | None, say: Callable[[str], None], stop: Stop) -> None:
    """The demo until `stop`, with its proxy on `listen` or the default; `say` gets lines for the person.

    Raises CryprqError.
    """
    provider = choose_provider("auto")
    exit_identity, client_identity = Identity.generate(provider), Identity.generate(provider)
    async with AsyncExitStack() as stack:
        resolver = SystemResolver()
        stack.callback(resolver.close)
        settings = exit_settings(
            ExitConfig(listen=(Destination("127.0.0.1", 0),), lane=ExitLaneTable(enabled=False))
        )
        # Loopback is allowed, so that the demo also reaches a server of one's own.
        policy = EgressPolicy(allow_private=True)
        exit = Exit(exit_identity, settings, {client_identity.peer_id: ""}, policy, resolver, provider)
        with explained(settings.listen):
            (address,) = await exit.start()
        stack.push_async_callback(exit.stop, 0.0)

        peer = f"cryprq://{exit_identity.peer_id}@{address}"
        config = client_from("", Path("demo"), True, {"peer": peer, "listen": listen})
        (choice,) = config.exits()
        link_settings = config.link_settings(choice, config.lane_settings())
        slots = SlotPool()
        make = entry_maker(client_identity, provider, slots)
        exits = plan_exits([PlannedExit("exit", 1, link_settings)], make, slots, failback=config.failback)
        dispatcher, facts = Dispatcher(exits, EVERYTHING), OwnFacts(exits)
        listener = MixedListener(dispatcher, listener_settings(config), facts)
        try:
            proxy = listener.start()
        except OSError as error:
            if listen is not None or error.errno != errno.EADDRINUSE:
                with explained([config.listen]):
                    raise
            say(f"{config.listen} is in use by another program, so the demo takes a free port.")
            free = replace(listener_settings(config), listen=Destination(config.listen.host, 0))
            listener = MixedListener(dispatcher, free, facts)
            with explained([free.listen]):
                proxy = listener.start()
        dispatcher.direct.never_to(proxy)
        stack.push_async_callback(exits.stop)
        stack.callback(dispatcher.stop)
        stack.push_async_callback(listener.stop)
        link = keep_up(exits)
        COLLECTOR.start()
        say(f"The proxy listens on {proxy}, for SOCKS5, SOCKS4a and HTTP. Try:")
        say(f"  curl -x socks5h://{proxy} https://example.com/")
        say(f"  curl -x socks5h://{proxy} http://{OWN_NAME}/")
        say("Ctrl-C ends the demo.")
        await stop.wait(link)
