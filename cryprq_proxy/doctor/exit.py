"""The checks of an exit: authorized peers, whether clients can reach it, and whether it reaches the Internet."""

from __future__ import annotations

from ..base.own_addresses import own_addresses
from ..base.program import to_run
from ..base.text import counted
from ..config.exit import authorized_file
from ..errors import ConfigError
from ..outbound.resolving.host_configuration import described, read_configuration
from ..pairing.invitation import is_global, own_address
from ..pairing.invite_store import InviteStore, beside
from .checks import CheckVerdict, Context, fail, ok, warn
from .machine import bindable


async def peers(context: Context) -> CheckVerdict:
    config = context.exit_config
    listed = config.peers(authorized_file(context.file, config)).allowed
    if not listed:
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
    store = InviteStore(beside(authorized_file(context.file, context.exit_config)))
    open_ones = store.open(context.now())
    if not open_ones:
        return ok("no invite is open")
    names = ", ".join(invite.name for invite in open_ones[:5])
    return ok(f"{counted(len(open_ones), 'open invite')}: {names}")


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


async def outward(context: Context) -> CheckVerdict:
    """Which address families clients can reach."""
    addresses = own_addresses()
    six = [
        address
        for address in addresses
        if ":" in address and not address.lower().startswith(("fe80", "::1", "fc", "fd"))
    ]
    four = [address for address in addresses if ":" not in address and not address.startswith("127.")]
    if not four and not six:
        return fail(
            "this machine has no address but loopback, so clients get nowhere", "mend its network first"
        )
    families = " and ".join(name for name, found in (("IPv4", four), ("IPv6", six)) if found)
    return ok(f"clients reach the network by {families}")


async def names(context: Context) -> CheckVerdict:
    """What answers for the names that clients ask for."""
    running = context.running_exit
    if running is not None and running.names is not None:
        return ok(f"the running exit looks up names by {running.names.by}")
    return ok(f"names are looked up by {described(read_configuration())}")
