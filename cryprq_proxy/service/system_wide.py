"""System-wide mode: from the configuration to what is in `tun`. The only module that imports it, and only when asked.

It stands apart so that the proxy runs where no TUN device, netlink or packet filter exists.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..base import leftovers
from ..base.program import to_run
from ..config.client import ClientConfig
from ..config.exit import ExitConfig
from ..config.tun import ExitTunTable, TunTable
from ..errors import ConfigError, CryprqError
from ..exit.egress_policy import EgressPolicy
from ..rules.engine import EVERYTHING, RuleSet
from ..rules.ranges import IPNetwork, without
from ..status import ClientStatus, Status, TunStatus
from . import lockdown_unit

if TYPE_CHECKING:
    from tun.exit_network import ExitNetwork
    from tun.leaktest.canaries import CanaryTargets
    from tun.leaktest.held import HeldFlow
    from tun.settings import ExitNetworkSettings, TunnelSettings
    from tun.system import System
    from tun.tunnel import TunnelPlan


def _system_for(what: str) -> System:
    """The system that `what` needs. Raises ConfigError where there is none, and without root."""
    from tun.this_system import this_system

    system = this_system()
    if os.geteuid():
        raise ConfigError(f"{what} changes routes and filters of this machine: run it as root (sudo)")
    return system


def _need_lockdown() -> None:
    if not _system_for("lockdown").has_lockdown:
        raise ConfigError(
            "lockdown works on Linux only: this system loads no packet filter of ours before the network comes"
        )


def make_tunnel(config: ClientConfig, rules: RuleSet) -> Any:
    """The TunnelPlan (tun/tunnel.py) of a client. Raises ConfigError, also for rules that it cannot keep."""
    _refuse_upstream(config)
    system = _system_for("--tun")
    _need_proof(system, experimental=config.tun.experimental)
    return _plan_on(system, config, rules)


def _refuse_upstream(config: ClientConfig) -> None:
    if config.upstream is not None:
        raise ConfigError(
            "--tun and --upstream exclude each other: the packets of the link could not be told apart"
        )


def _need_proof(system: System, *, experimental: bool) -> None:
    if not system.proved and not experimental:
        raise ConfigError(
            f"system-wide mode has not been proved on {system.name} yet: read docs/macos.md, look at what --dry-run "
            "says, and start it with --experimental if you want to try it"
        )


def _plan_on(system: System, config: ClientConfig, rules: RuleSet) -> TunnelPlan:
    from tun.tunnel import TunnelPlan

    return TunnelPlan.of(
        system,
        tunnel_settings(config.tun),
        [endpoint.address for exit in config.exits() for endpoint in exit.endpoints],
        rules,
    )


def cut_by_start(table: TunTable) -> list[str]:
    """The other ends of connections from outside that a start ends for good, without `--inbound keep` or `--confirm`.

    Empty also where system-wide mode cannot start: the start itself says why. Changes nothing.
    """
    if os.geteuid() or table.inbound == "keep" or table.confirm:
        return []
    from tun.firewall.inbound import cut_connections

    settings = tunnel_settings(table)
    try:
        system = _system_for("--tun")
        lan = asyncio.run(system.read_lan(settings.device))
        inbound = system.read_inbound()
    except CryprqError:
        return []
    return list(map(str, cut_connections(settings, lan, inbound.connections)))


def explain_rules(rules: RuleSet, host: str, port: int) -> str:
    """What system-wide mode does with a connection to `host` (canonical, as in a Destination), or why it refuses these
    rules: one sentence. Works everywhere, without root."""
    from tun.firewall.policy import explain

    return explain(rules, host, port)


def tunnel_settings(table: TunTable) -> TunnelSettings:
    """Those of the client, in the terms of `tun`. Raises ConfigError."""
    from tun.dns.settings import DnsSettings
    from tun.settings import TunnelSettings

    dns = msgspec.structs.asdict(table.dns) | {"split": dict(table.dns.split)}
    return TunnelSettings(
        offload=table.offload == "auto",
        exclude=table.exclude,
        include=table.include,
        exclude_uids=table.exclude_uid,
        exclude_cgroups=table.exclude_cgroup,
        lan=table.lan == "allow",
        kill_switch=table.kill_switch == "on",
        keep_inbound=table.inbound == "keep",
        leave_resolver=table.resolver == "leave",
        state=table.state_dir,
        dns=DnsSettings(**dns),
    )


def exit_network_settings(table: ExitTunTable) -> ExitNetworkSettings:
    """Those of the exit, in the terms of `tun`. Raises ConfigError."""
    from tun.settings import POOLS4, POOLS6, ExitNetworkSettings

    return ExitNetworkSettings(
        offload=table.offload == "auto",
        pool4=table.pool4 or POOLS4[0],
        pool6=table.pool6 or POOLS6[0],
        fixed=frozenset(pool.version for pool in (table.pool4, table.pool6) if pool is not None),
        isolate=table.isolate,
        state=table.state_dir,
    )


def start_network(config: ExitConfig, policy: EgressPolicy) -> Awaitable[ExitNetwork]:
    """The running ExitNetwork (tun/exit_network.py) of an exit. Raises CryprqError; ConfigError at once."""
    system = _system_for("--tun at the exit")
    _need_proof(system, experimental=config.tun.experimental)
    from tun.exit_network import ExitNetwork

    return ExitNetwork.start(system, exit_network_settings(config.tun), policy)


# --- dry run ---


def dry_run(config: ClientConfig | ExitConfig, rules: RuleSet | None = None) -> dict[str, Any]:
    """What a start of this role would change, as plain values: "changes" and "remarks". Changes nothing, makes no link,
    and works without root. Raises CryprqError."""
    from tun import dry_run as tun_dry_run
    from tun.this_system import this_system

    system = this_system()
    if isinstance(config, ExitConfig):
        found = asyncio.run(tun_dry_run.of_exit(system, exit_network_settings(config.tun)))
    else:
        _refuse_upstream(config)
        found = asyncio.run(tun_dry_run.of_client(_plan_on(system, config, rules or EVERYTHING)))
    return {"changes": [change._asdict() for change in found.changes], "remarks": list(found.remarks)}


def clean_up(state: Path, say: Callable[[str], None], *, lift: bool = False) -> None:
    """Undo what a process that was killed has left of either role; lockdown too, if it is to `lift`.

    Raises CryprqError. Needs no configuration. Does nothing, and says so, where nothing is left.
    """
    system = _system_for("cleanup")
    from tun.cleanup import clean

    done = clean(system, state, lift=partial(system.lift_lockdown, state) if lift else None)
    if lift:
        lockdown_unit.remove()
    say(f"undone: {', '.join(done)}" if done else "nothing was left to undo")
    if leftovers.lockdown():
        say(leftovers.LOCKDOWN_STANDS)


# --- lockdown ---


def lock_down(config: ClientConfig, rules: RuleSet, say: Callable[[str], None]) -> None:
    """Hold everything in from now on while no client runs, from before the network comes. Raises CryprqError."""
    _need_lockdown()
    plan = make_tunnel(config, rules)
    from tun.linux.firewall.lockdown import FILE
    from tun.linux.firewall.lockdown_switch import loader, turn_on

    file = config.tun.state_dir / FILE
    # First, as it does nothing without the file: so a boot finds both or none.
    manager = lockdown_unit.install(file, loader())
    stands = asyncio.run(turn_on(plan.settings, plan.exits, plan.policy))
    if manager:
        lockdown_unit.start()
    say(
        "lockdown is on: nothing gets out until --tun runs"
        if stands
        else "lockdown is on: when the client that runs has ended, nothing gets out until --tun runs again"
    )
    if not manager:
        say(
            f"no systemd runs here, so nothing loads it at a boot: call nft -f {file} before the network comes"
        )


def lift_lockdown(state: Path, say: Callable[[str], None]) -> None:
    """The end of it. Works without a configuration, and where only a part of it is there. Raises CryprqError."""
    _need_lockdown()
    from tun.linux.firewall.lockdown_switch import turn_off

    was_on = turn_off(state)
    lockdown_unit.remove()
    say("lockdown is off" if was_on else "lockdown was off already")
    if left := leftovers.left_by_client():
        say(left)


# --- leak test ---


def check_leak_test(to: Sequence[str]) -> None:
    """Raise ConfigError for what no leak test can be made with, before anything is asked."""
    for text in to:
        _literal(text)
    _system_for("leaktest")


def hold_flows(to: Sequence[str], seconds: int) -> list[HeldFlow]:
    """Open flows like those of a leak test, and send on them for so long, for its `held`. Blocks.

    Raises ConfigError.
    """
    addresses = [_literal(text) for text in to]
    _system_for("leaktest")
    from tun.leaktest.held import hold

    return hold(_canary_targets(addresses), seconds)


def leak_test(
    running: Iterable[Status], to: Sequence[str], held: Sequence[HeldFlow] = ()
) -> tuple[int, str, dict[str, Any]]:
    """Send canaries and watch where they go: the exit code (1 on a leak), a table, and the same as plain values.

    `running` are the roles that run here. `to` are the addresses to send to instead of the usual ones. `held` are flows
    from before (`hold_flows`), which are tested as well. Takes some seconds. Raises ConfigError without root, where
    neither a client runs in system-wide mode nor lockdown is on, and where a setting lets this test itself past the
    tunnel.
    """
    addresses = [_literal(text) for text in to]
    system = _system_for("leaktest")
    from tun.leaktest import probe as leakprobe
    from tun.leaktest.report import plain, render

    tun = next((role.tun for role in running if isinstance(role, ClientStatus) and role.tun), None)
    exits: Sequence[tuple[str, int]]
    allowed: Sequence[IPNetwork]
    if tun is not None:
        try:
            exits = [(str(ip_address(host)), port) for host, port in tun.exits]
            allowed = list(_let_out(tun))
        except ValueError:
            raise ConfigError("the client is of another version: restart it, then test") from None
    elif leftovers.lockdown():
        exits, allowed = system.let_out()
    else:
        raise ConfigError(
            f"no client in system-wide mode is running: start {to_run('--tun')} first, then test"
        )
    report = asyncio.run(
        leakprobe.run(
            system=system.leak_test,
            tunnel=leakprobe.NO_TUNNEL if tun is None else _tunnel_of(tun),
            exits=exits,
            allowed=allowed,
            targets=_canary_targets(addresses, devices=list(tun.uplinks) if tun else ()),
            held=held,
        )
    )
    return report.exit_code, render(report), plain(report)


def _canary_targets(addresses: Sequence[str], devices: Sequence[str] = ()) -> CanaryTargets:
    """Those addresses in place of the usual ones, if there are any."""
    from tun.leaktest.canaries import CanaryTargets

    if addresses:
        return CanaryTargets(dns=addresses, hosts=addresses, devices=devices)
    return CanaryTargets(devices=devices)


def _tunnel_of(tun: TunStatus) -> str:
    """The tunnel's interface. Raises ConfigError where a leak test proves nothing: where it is let past the tunnel."""
    if tun.device is None:
        raise ConfigError("the client is not ready yet: try again when it is")
    if any(first <= os.geteuid() <= last for first, last in tun.exclude_uids):
        raise ConfigError(
            "--exclude-uid lets root past the tunnel, and so this test: run the client without it"
        )
    if _in_a_cgroup_of(tun.exclude_cgroups):
        raise ConfigError(
            "--exclude-cgroup lets this shell past the tunnel, and so this test: run it from another cgroup"
        )
    if tun.rules.direct is None:
        raise ConfigError(
            "the rules send so much past the tunnel that this test cannot tell a wish from a leak: run the client "
            "without them"
        )
    if paused := tun.kill_switch.paused:
        raise ConfigError(f"the client is paused, so all may get out: test again in {paused} s")
    return tun.device.name


def _in_a_cgroup_of(paths: Iterable[str]) -> bool:
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    own = next((f"{line[3:]}/" for line in lines if line.startswith("0::")), "/")
    return any(own.startswith(f"/{path.strip('/')}/") for path in paths)


def _let_out(tun: TunStatus) -> Iterator[IPNetwork]:
    """What the client's settings let past the tunnel."""
    yield from map(ip_network, (*tun.lan, *tun.exclude, *(tun.rules.direct or ())))
    included = list(map(ip_network, tun.include))
    if included:
        yield from without([IPv4Network("0.0.0.0/0"), IPv6Network("::/0")], included)


def _literal(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise ConfigError(f"--target: expected an IP address, got {text[:60]!a}") from None
    if address.is_multicast or address.is_unspecified or text == "255.255.255.255":
        # The local network may have them, whatever the tunnel does.
        raise ConfigError(f"--target: expected the address of one host, got {text[:60]!a}")
    return str(address)
