"""The command line: the client's flags, the other commands (commands/), and how each run ends.

    0    clean, also after Ctrl-C or SIGTERM of what runs until then
    2    the command line or a configuration is wrong
    130  Ctrl-C of everything else
    1    everything else

Each error is one sentence on standard error that begins with "cryprq-proxy:". The commands import what they need when
they run: `--help` is quick. A Ctrl-C while all this is loaded is for __main__.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.core import ParameterSource

from . import __version__
from .base.log import describe, one_line, setup, write_behind
from .base.program import PROGRAM
from .commands import (
    check,
    completion,
    configuration,
    control,
    dashboard,
    doctor,
    explain,
    keys,
    pairing,
    run,
    tun,
    usage,
)
from .commands import dry_run as dry
from .commands.common import act_for, config_option, identity_option, log_flags, log_options, seconds
from .commands.connect import command as connect
from .commands.desktop import command as desktop
from .commands.service.command import service
from .commands.status import command as status
from .errors import ConfigError, CryprqError

OK: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130

_log = logging.getLogger(__name__)


@click.group(
    cls=usage.Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@config_option
@identity_option
@click.option(
    "--peer",
    multiple=True,
    metavar="cryprq://PEERID@HOST[:PORT]",
    help="The exit; may be repeated, for further endpoints of it or further exits.",
)
@click.option("--listen", metavar="[HOST:]PORT", help="Where applications connect (default: 127.0.0.1:1080).")
@click.option(
    "-L",
    "--forward",
    multiple=True,
    metavar="[ADDRESS:]PORT:HOST:HOSTPORT",
    help="Forward PORT of this machine to HOST:HOSTPORT, as ssh does; may be repeated.",
)
@click.option(
    "--user",
    metavar="NAME:PASSWORD",
    help="What applications must present. Other users can read it in the list of processes; "
    "user_file in the configuration hides it from them.",
)
@click.option(
    "--upstream",
    metavar="socks5://[USER:PASSWORD@]HOST:PORT",
    help="Dial the exit through a SOCKS5 proxy; with http:// through an HTTP proxy.",
)
@click.option(
    "--connect",
    type=click.Choice(["eager", "learned", "exact"]),
    help="When an application hears that its target is connected: at once, at once if the exit reached it lately, or "
    "when the exit says so.",
)
@click.option(
    "--carrier",
    type=click.Choice(["auto", "tcp", "udp"]),
    help="What carries connections: TCP or UDP, whichever is better; TCP alone, for all; or UDP wherever it passes.",
)
@click.option(
    "--tun",
    is_flag=True,
    help="System-wide mode: route the whole system, not only what uses the proxy; as root.",
)
@click.option(
    "--exclude", multiple=True, metavar="CIDR", help="With --tun: send this past the tunnel; may be repeated."
)
@click.option(
    "--include", multiple=True, metavar="CIDR", help="With --tun: send only this through the tunnel."
)
@click.option(
    "--exclude-uid",
    multiple=True,
    metavar="USER",
    help="With --tun: this user's programs go past the tunnel.",
)
@click.option(
    "--exclude-cgroup",
    multiple=True,
    metavar="PATH",
    help="With --tun: programs of this cgroup (version 2) go past the tunnel.",
)
@click.option(
    "--lan", type=click.Choice(["allow", "block"]), help="With --tun: whether the LAN is reached directly."
)
@click.option(
    "--kill-switch",
    type=click.Choice(["on", "off"]),
    help="With --tun: whether nothing gets out while the link is down.",
)
@click.option(
    "--inbound",
    type=click.Choice(["block", "keep"]),
    help="With --tun: whether connections from outside still come in.",
)
@click.option(
    "--resolver",
    type=click.Choice(["set", "leave"]),
    help="With --tun: whether the system's resolver is set to the tunnel's.",
)
@click.option(
    "--confirm",
    type=seconds(0, 3600),
    metavar="SECONDS",
    help="With --tun: undo everything unless `confirm` is called within this time.",
)
@click.option(
    "--experimental",
    is_flag=True,
    default=None,
    help="With --tun: start it where it has not been proved yet, which is macOS; without effect on Linux.",
)
@dry.options
@click.option(
    "--yes",
    is_flag=True,
    help="With --tun: do not ask before connections from outside, as by ssh, are ended.",
)
@log_options
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(
    context: click.Context,
    /,
    config: Path | None,
    verbose: bool,
    log_format: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    full: bool,
    **flags: Any,
) -> None:
    """A local SOCKS and HTTP proxy whose traffic goes to an exit peer of your own over a post-quantum-hybrid
    encrypted link.

    Without a command it runs the proxy.
    """
    context.obj = log_flags(verbose, log_format)
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context, context.invoked_subcommand)
        return
    from .base.paths import config_dir
    from .config.client import ClientConfig, load_client
    from .config.foreign import only_harmless
    from .process.file_watch import FileWatch
    from .process.lifecycle import run as run_process
    from .process.started import Started
    from .service.client import run_client
    from .service.client_parts import MakeTun, no_tun

    act_for(config)
    tun_flags = {f"tun.{name}": flags.pop(name) for name in _TUN_FLAGS}
    tun_flags["tun.enabled"] = flags.pop("tun") or None
    merged = {**flags, **tun_flags, **context.obj}

    watch, file = FileWatch(), config_dir() / "client.toml" if config is None else config

    def load(kept: bool = False) -> ClientConfig:
        watch.before_reading(file, anew=True)
        return only_harmless(load_client(config, merged, kept=kept))

    loaded = load()
    again = partial(load, kept=file.is_file())
    setup(loaded.log_level, loaded.log_format)
    if not loaded.tun.enabled and (alone := _given(context, (*_TUN_FLAGS, "yes"))):
        raise click.UsageError(f"{alone} needs --tun")
    dry.check(tun=loaded.tun.enabled, dry_run=dry_run, as_json=as_json, full=full)
    if dry_run:
        from .service.client_parts import read_rules
        from .service.system_wide import dry_run as found

        dry.show(found(loaded, read_rules(loaded, watch)), as_json=as_json, full=full)
        return
    tunnel: MakeTun = no_tun
    if loaded.tun.enabled:
        from .service.system_wide import make_tunnel

        tunnel = make_tunnel
        if not yes:
            tun.ask_before_cutting(loaded.tun)
    started = Started.of("client", file, merged)
    run_process(lambda stop: run_client(loaded, again, stop, tunnel, watch, started=started))


_TUN_FLAGS: Final = (
    "exclude",
    "include",
    "exclude_uid",
    "exclude_cgroup",
    "lan",
    "kill_switch",
    "inbound",
    "resolver",
    "confirm",
    "experimental",
)
"""Flags of the section [tun]."""


def _given(context: click.Context, names: Container[str]) -> str:
    """The first of these flags on the command line, or ""."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
        if given and parameter.name in names:
            return parameter.opts[-1]
    return ""


def _refuse_misplaced(context: click.Context, command: str) -> None:
    """Raise UsageError: the client's flags have no effect in front of another command."""
    others = {parameter.name or "" for parameter in context.command.params} - {"verbose", "log_format"}
    if flag := _given(context, others):
        raise click.UsageError(f"{flag} belongs behind {command!r}, if it has that flag")


_COMMANDS: Final[tuple[click.Command, ...]] = (
    run.exit_,
    run.demo,
    keys.keygen,
    keys.id_,
    pairing.invite,
    pairing.join,
    pairing.peers,
    control.switch,
    control.reload,
    status.status,
    dashboard.dashboard,
    service,
    check.check,
    doctor.doctor,
    explain.explain,
    connect.connect,
    configuration.config,
    completion.completion,
    tun.pause,
    tun.confirm,
    tun.leaktest,
    tun.cleanup,
    tun.lockdown,
    desktop.pac,
    desktop.env,
    desktop.system_proxy,
)
for _command in _COMMANDS:
    cli.add_command(_command)


# --- the end ---


def main() -> NoReturn:
    """What the console script calls (__main__.py)."""
    _open_closed_files()
    _leave_closed_directory()
    if instruction := os.environ.get(completion.VARIABLE):
        sys.exit(completion.answer(cli, instruction))
    sys.exit(run_command())


def _open_closed_files() -> None:
    """A standard file that was closed, as by `>&-`, takes and gives nothing. Without a file there Python has None for
    it, and the next socket has its number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _leave_closed_directory() -> None:
    """Libraries ask where they are, also where this user may not be: in root's directory by `sudo -u`."""
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command line, by default that of the process. The exit code of the process."""
    try:
        # cli.main() would report errors in its own words.
        with cli.make_context(PROGRAM, sys.argv[1:] if arguments is None else arguments) as context:
            cli.invoke(context)
        return OK
    except click.exceptions.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        # The reader of our output has closed it.
        _drop_output()
        return OK
    except click.ClickException as error:
        code = error.exit_code
        _complain(usage.sentence(error) if isinstance(error, click.UsageError) else error.format_message())
        return code
    except ConfigError as error:
        _complain(describe(error))
        return WRONG_USAGE
    except KeyboardInterrupt:
        # Before a role has started, or after the second signal.
        return INTERRUPTED
    except click.Abort:
        # At a question.
        return FAILED
    except (CryprqError, OSError) as error:
        _complain(describe(error))
        _drop_output()
        return FAILED
    except Exception as error:  # noqa: BLE001  the last word to the person
        _complain(f"this is a bug in {PROGRAM}: {describe(error)}; -v says more")
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            _log.debug("where it happened", exc_info=error)
        _drop_output()
        return FAILED


def _complain(text: str) -> None:
    line = f"{PROGRAM}: {one_line(usage.without_secrets(text))}"
    if not write_behind(line):
        with contextlib.suppress(OSError, ValueError):
            click.echo(line, err=True)


def _drop_output() -> None:
    """Discard what is buffered for a standard output that takes nothing; Python would end with a traceback."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
