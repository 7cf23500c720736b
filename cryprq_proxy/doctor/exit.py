"""The checks of an exit: authorized peers, and whether clients can reach it."""

from __future__ import annotations

from ..base.program import to_run
from ..base.text import counted
from ..config.exit import authorized_file
from ..errors import ConfigError
from ..pairing.invitation import is_global, own_address
from ..pairing.invite_store import InviteStore, beside
from .checks import CheckVerdict, Context, fail, ok, warn
from .machine import bindable


async def peers(context: Context) -> CheckVerdict:
    config = context.exit_config
    listed = config.peers(authorized_file(context.file, config)).allowed
    if not listed:
        if waits := _open_invites(context):
            return ok(f"no client is on the list yet: it waits for {_first_of(waits)}")
        return fail("no client is on the list, so none is let in", f"invite one: {to_run('invite NAME')}")
    text = f"{counted(len(listed), 'client')} may come in"
    running = context.running_exit
    if running is not None and running.authorized != len(listed):
        return warn(
            f"{text}, but the running exit knows {running.authorized}",
            "send it SIGHUP, and look into its log if that does not help",
        )
    return ok(text)


async def invites(context: Context) -> CheckVerdict:
    names = _open_invites(context)
    if not names:
        return ok("no invite is open")
    return ok(f"{counted(len(names), 'open invite')}: {_first_of(names)}")


def _open_invites(context: Context) -> list[str]:
    """The name of each."""
    store = InviteStore(beside(authorized_file(context.file, context.exit_config)))
    return [invite.name for invite in store.open(context.now())]


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:5])


async def listeners(context: Context) -> CheckVerdict:
    """TCP ports; the lane's UDP ports have the same numbers."""
    config = context.exit_config
    addresses = [*config.listen, *([config.websocket.listen] if config.websocket.listen else [])]
    if context.running is None:
        return bindable(addresses)
    told = context.running.listen
    shown = ", ".join(told)
    missing = [str(address) for address in config.listen if str(address) not in told]
    if missing and all(address.port for address in config.listen):
        return warn(
            f"the running exit listens on {shown}, not on {', '.join(missing)}",
            "restart it, so that it takes the configuration as it is now",
        )
    return ok(f"the running exit listens on {shown}")


async def public(context: Context) -> CheckVerdict:
    """The address at which clients reach the exit."""
    config = context.exit_config
    if config.public:
        return ok(f"invites name {config.public}, as the configuration says")
    try:
        address = own_address(config.listen)
    except ConfigError:
        return warn(
            f"it listens on {', '.join(map(str, config.listen))}, which no other machine can reach",
            "listen on 0.0.0.0:4433 or [::]:4433; or set `public` to the reverse proxy's address",
        )
    if is_global(address):
        return ok(f"invites name {address}, this machine's own address on the Internet")
    return warn(
        f"this machine has no address of its own on the Internet (the best one is {address.host})",
        f"forward TCP and UDP port {address.port} on the router to it, and set `public` to the name or address outside",
    )
