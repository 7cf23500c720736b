"""The commands that run until they are stopped. The client runs without a command (cli.py)."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base.log import setup
from . import dry_run as dry
from .common import (
    act_for,
    client_alone,
    config_option,
    identity_option,
    log_options,
    merged,
    refuse_callers_exit,
)

if TYPE_CHECKING:
    from ..process.lifecycle import Stop
    from ..process.overlap import Parent


@click.command("exit", short_help="Run the exit peer.")
@config_option
@identity_option
@click.option(
    "--listen", multiple=True, metavar="[HOST:]PORT", help="Where clients connect (default: 0.0.0.0:4433)."
)
@click.option("--allow", multiple=True, metavar="PEERID", help="Let this peer in; may be repeated.")
@click.option("--authorized", metavar="F", help="A file with the peers to let in; SIGHUP reads it again.")
@click.option(
    "--allow-private",
    is_flag=True,
    default=None,
    help="Clients may reach this machine and the private networks behind it.",
)
@click.option(
    "--tun",
    "tun",
    is_flag=True,
    default=None,
    help="Carry packets of clients in system-wide mode (cryprq-proxy --tun); as root.",
)
@click.option(
    "--experimental",
    is_flag=True,
    default=None,
    help="With --tun: start it where it has not been proved yet, which is macOS; without effect on Linux.",
)
@dry.options
@click.option(
    "--overlap",
    is_flag=True,
    help="End the main process when a successor can start; open streams go on in another one. For service managers.",
)
@log_options
@click.pass_context
def exit_(
    context: click.Context,
    /,
    config: Path | None,
    overlap: bool,
    dry_run: bool,
    as_json: bool,
    full: bool,
    verbose: bool,
    log_format: str | None,
    **flags: Any,
) -> None:
    """Run the exit peer: it takes links from the listed peers and makes their connections."""
    from ..process.overlap import begin

    parent = begin() if overlap and not dry_run else None
    from ..base.deputy import act_as_owner
    from ..base.paths import config_dir
    from ..config.exit import ExitConfig, authorized_file, load_exit
    from ..config.foreign import only_harmless
    from ..process.file_watch import FileWatch
    from ..process.lifecycle import run
    from ..process.started import Started
    from ..service.exit import StartNetwork, no_network, nobody_waits, run_exit

    act_for(config)
    if not (flags["allow"] or flags["authorized"] or flags["identity"]):
        refuse_callers_exit(config)
    flags |= merged(context, verbose, log_format)
    flags["tun.enabled"] = flags.pop("tun")
    flags["tun.experimental"] = flags.pop("experimental")

    def load() -> ExitConfig:
        return only_harmless(load_exit(config, flags))

    watch = FileWatch()
    file = config_dir() / "exit.toml" if config is None else config
    watch.before_reading(file, file.with_name("authorized"))
    loaded = load()
    dry.check(tun=loaded.tun.enabled, dry_run=dry_run, as_json=as_json, full=full)
    if dry_run:
        from ..service.system_wide import dry_run as found

        dry.show(found(loaded), as_json=as_json, full=full)
        return
    listed = authorized_file(config, loaded)
    act_as_owner(listed.parent, everywhere=False)
    setup(loaded.log_level, loaded.log_format)
    if not flags["identity"] and (client := client_alone(file.parent)) is not None:
        logging.getLogger(__name__).warning(
            "this machine is a client, by %s; if the exit was to run on another machine, stop it here", client
        )
    started = Started.of("exit", file, flags)
    network: StartNetwork = no_network
    if loaded.tun.enabled:
        from ..service.system_wide import start_network

        network = start_network

    def role(stop: Stop) -> Coroutine[Any, Any, None]:
        released = nobody_waits if parent is None else partial(_let_go, stop, parent, loaded.shutdown_grace)
        return run_exit(loaded, load, stop, network, listed, watch, released=released, started=started)

    run(role)


def _let_go(stop: Stop, parent: Parent, seconds: float) -> None:
    """Let the successor begin; the manager listens to it from now on."""
    stop.notifier.close()
    parent.release(seconds)


@click.command()
@click.option("--listen", metavar="[HOST:]PORT", help="Where applications connect (default: 127.0.0.1:1080).")
@log_options
@click.pass_context
def demo(context: click.Context, listen: str | None, verbose: bool, log_format: str | None) -> None:
    """Run exit and proxy in this one process, to try it out. Ctrl-C ends it; nothing is left behind."""
    from ..process.lifecycle import run
    from ..service.demo import run_demo

    flags = merged(context, verbose, log_format)
    setup("debug" if flags["log_level"] else "info", "json" if flags["log_format"] == "json" else "text")
    run(lambda stop: run_demo(listen, click.echo, stop))
