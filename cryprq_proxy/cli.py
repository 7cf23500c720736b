"""The command line: what each command is called, which flags it has, and how it ends.

    0  clean, also after Ctrl-C or SIGTERM of what runs until then
    2  the command line or a configuration is wrong
    1  everything else

Whatever goes wrong is one sentence on standard error that begins with "cryprq-proxy:". The commands import what they
need when they run, so that `--help` is quick and a Ctrl-C while the program loads meets code that knows what to do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
from click.core import ParameterSource

from . import __version__
from .errors import ConfigError, CryprqError
from .log import describe, one_line, setup

if TYPE_CHECKING:
    from .config import ClientConfig, ExitConfig

PROGRAM: Final = "cryprq-proxy"
OK: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2

_log = logging.getLogger(__name__)

_file = click.Path(path_type=Path)


def _config_option[F: Callable[..., Any]](command: F) -> F:
    return click.option(
        "--config", type=_file, metavar="F", help="The configuration (default: in $XDG_CONFIG_HOME/cryprq/)."
    )(command)


def _identity_option[F: Callable[..., Any]](command: F) -> F:
    return click.option("--identity", metavar="F", help="The file of this side's keys; made on first use.")(
        command
    )


def _log_options[F: Callable[..., Any]](command: F) -> F:
    command = click.option(
        "--log-format", type=click.Choice(["text", "json"]), help="How the log on standard error looks."
    )(command)
    return click.option("-v", "--verbose", is_flag=True, help="Log everything.")(command)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@_config_option
@_identity_option
@click.option("--peer", metavar="cryprq://PEERID@HOST:PORT", help="The exit.")
@click.option("--listen", metavar="HOST:PORT", help="Where applications connect (default: 127.0.0.1:1080).")
@click.option(
    "--user",
    metavar="NAME:PASSWORD",
    help="What applications must present. Others on this machine can see it in the list of processes: "
    "user_file in the configuration keeps it from them.",
)
@click.option(
    "--upstream", metavar="socks5://[USER:PASSWORD@]HOST:PORT", help="Dial the exit through a SOCKS5 proxy."
)
@click.option("--tun", is_flag=True, help="Route the whole system, not only what uses the proxy; as root.")
@click.option(
    "--exclude", multiple=True, metavar="CIDR", help="With --tun: past the tunnel; may be repeated."
)
@click.option(
    "--include", multiple=True, metavar="CIDR", help="With --tun: only this goes through the tunnel."
)
@click.option(
    "--exclude-uid", multiple=True, metavar="USER", help="With --tun: this user's programs go past it."
)
@click.option("--lan", type=click.Choice(["allow", "block"]), help="With --tun: is the LAN reached directly?")
@click.option(
    "--kill-switch",
    type=click.Choice(["on", "off"]),
    help="With --tun: does nothing get out while it is down?",
)
@click.option(
    "--inbound", type=click.Choice(["block", "keep"]), help="With --tun: do connections from outside go on?"
)
@click.option(
    "--confirm",
    type=float,
    metavar="SECONDS",
    help="With --tun: undo it all unless `confirm` is called in time.",
)
@_log_options
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(
    context: click.Context, /, config: Path | None, verbose: bool, log_format: str | None, **flags: Any
) -> None:
    """A local SOCKS and HTTP proxy whose traffic goes to an exit peer of your own over a post-quantum-hybrid
    encrypted link.

    Without a command it runs the proxy.
    """
    context.obj = _log_flags(verbose, log_format)
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context, context.invoked_subcommand)
        return
    from .config import load_client
    from .process import run
    from .service import run_client

    wide = {f"tun.{name}": flags.pop(name) for name in _WIDE}
    wide["tun.enabled"] = flags.pop("tun") or None
    loaded = load_client(config, {**flags, **wide, **context.obj})
    setup(loaded.log_level, loaded.log_format)
    if not loaded.tun.enabled and any(value not in (None, ()) for value in wide.values()):
        raise click.UsageError("--exclude, --include, --lan and their like need --tun")
    tunnel = None
    if loaded.tun.enabled:
        from .system import make_tunnel

        tunnel = make_tunnel
    run(lambda stop: run_client(loaded, stop, tunnel))


_WIDE: Final = ("exclude", "include", "exclude_uid", "lan", "kill_switch", "inbound", "confirm")
"""Flags of the section [tun]."""


def _refuse_misplaced(context: click.Context, command: str) -> None:
    """The client's flags before the name of another command would be without effect, which nobody wants."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and name not in ("verbose", "log_format"):
            raise click.UsageError(f"{parameter.opts[-1]} belongs behind {command!r}, if it has that flag")


def _log_flags(verbose: bool, log_format: str | None) -> dict[str, str | None]:
    return {"log_level": "debug" if verbose else None, "log_format": log_format}


def _merged(context: click.Context, verbose: bool, log_format: str | None) -> dict[str, str | None]:
    """-v and --log-format may stand before or behind the command."""
    behind = _log_flags(verbose, log_format)
    return {name: value or context.obj[name] for name, value in behind.items()}


@cli.command("exit", short_help="Run the exit peer.")
@_config_option
@_identity_option
@click.option(
    "--listen", multiple=True, metavar="HOST:PORT", help="Where clients connect (default: 0.0.0.0:4433)."
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
    help="Take packets of whole systems too (cryprq-proxy --tun); as root.",
)
@_log_options
@click.pass_context
def exit_(
    context: click.Context, /, config: Path | None, verbose: bool, log_format: str | None, **flags: Any
) -> None:
    """Run the exit peer: it takes links from the listed peers and opens their connections."""
    from .config import load_exit
    from .process import run
    from .service import run_exit

    flags |= _merged(context, verbose, log_format)
    flags["tun.enabled"] = flags.pop("tun")
    loaded = load_exit(config, flags)
    setup(loaded.log_level, loaded.log_format)
    network = None
    if loaded.tun.enabled:
        from .system import make_network

        network = make_network
    run(lambda stop: run_exit(loaded, lambda: load_exit(config, flags).authorised_peers(), stop, network))


@cli.command()
@click.argument("file", type=_file, required=False, metavar="[F]")
def keygen(file: Path | None) -> None:
    """Create an identity in the file F and print its peer id. Never overwrites one."""
    from .crypto.identity import Identity
    from .crypto.primitives import select_provider
    from .places import default_identity

    identity = Identity.generate(select_provider())
    identity.save(default_identity() if file is None else file)
    click.echo(identity.peer_id)


@cli.command("id")
@click.argument("file", type=_file, required=False, metavar="[F]")
def id_(file: Path | None) -> None:
    """Print the peer id of the identity in the file F."""
    from .crypto.identity import Identity
    from .crypto.primitives import select_provider
    from .places import default_identity

    click.echo(Identity.load(select_provider(), default_identity() if file is None else file).peer_id)


@cli.command()
@click.option("--listen", metavar="HOST:PORT", help="Where applications connect (default: 127.0.0.1:1080).")
@_log_options
@click.pass_context
def demo(context: click.Context, listen: str | None, verbose: bool, log_format: str | None) -> None:
    """Run exit and proxy in this one process, to try it out. Ctrl-C ends it; nothing is left behind."""
    from .demo import run_demo
    from .process import run

    flags = _merged(context, verbose, log_format)
    setup("debug" if flags["log_level"] else "info", "json" if flags["log_format"] == "json" else "text")
    run(lambda stop: run_demo(listen, click.echo, stop))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object for each that runs.")
@_config_option
def status(as_json: bool, config: Path | None) -> None:
    """Ask the running client or exit how it is."""
    answers = _ask(_control_sockets(config))
    if as_json:
        for answer in answers:
            click.echo(json.dumps(answer, indent=2))
        return
    from .status_view import render

    for answer in answers:
        click.echo(render(answer))


@cli.command()
@click.argument("seconds", type=click.IntRange(1, 3600))
@_config_option
def pause(seconds: int, config: Path | None) -> None:
    """Let this machine past the tunnel for so many SECONDS, as for the login page of a hotel. Ends by itself."""
    _ask(_control_sockets(config), "pause", seconds)
    click.echo(f"open for {seconds} s; programs that are started now are not tunnelled")


@cli.command()
@_config_option
def confirm(config: Path | None) -> None:
    """Keep what `--tun --confirm SECONDS` has set up."""
    _ask(_control_sockets(config), "confirm")
    click.echo("confirmed")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--target", multiple=True, metavar="ADDRESS", help="Send to this address; may be repeated.")
@_config_option
def leaktest(as_json: bool, target: tuple[str, ...], config: Path | None) -> None:
    """Send packets of the kinds that leak, and see from what leaves this machine whether any does; as root.

    Without --target they go to public resolvers. Exit code 1 on a leak.
    """
    from .system import leak_test

    sockets = _control_sockets(config)
    try:
        answers = _ask(sockets)
    except CryprqError as error:
        raise ConfigError(str(error)) from None
    code, table, plain = leak_test(answers, target)
    click.echo(json.dumps(plain, indent=2) if as_json else table)
    raise click.exceptions.Exit(code)


@cli.command()
@click.option(
    "--state-dir", type=_file, metavar="D", help="Where the journal is (default: /var/lib/cryprq-proxy)."
)
def cleanup(state_dir: Path | None) -> None:
    """Undo what --tun has changed on this machine, after a crash. Harmless at any other time."""
    from .system import clean_up
    from .system_config import STATE

    clean_up(state_dir or STATE, click.echo)


def _control_sockets(config: Path | None) -> list[Path]:
    """The sockets to ask: that of the configuration, or those of the default ones and the default places."""
    from .config import load_client, load_exit
    from .places import control_sockets

    loaders: tuple[Callable[[Path | None], ClientConfig | ExitConfig], ...] = (load_client, load_exit)
    errors, found = [], []
    for load in loaders:
        try:
            found.append(load(config).control_socket)
        except ConfigError as error:
            errors.append(error)
    if config is None:
        return list(dict.fromkeys([*found, *control_sockets()]))
    if not found:
        # It is a configuration of neither kind; its name tells which one it was meant to be.
        raise errors[1 if "exit" in config.name else 0]
    return found[:1]


def _ask(sockets: list[Path], command: str = "status", seconds: int = 0) -> list[dict[str, Any]]:
    """The answers of all that answer. Raises CryprqError if nobody does."""
    from .control import query

    answers, errors = [], []
    for path in sockets:
        try:
            answers.append(query(path, command, seconds=seconds))
        except CryprqError as error:
            errors.append((not path.exists(), error))
    if not answers:
        # One that is there and does not answer tells more than one that is not there.
        raise min(errors, key=lambda item: item[0])[1]
    return answers


# --- the end ---


def main() -> NoReturn:
    """The console script."""
    sys.exit(run_command())


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command line, by default that of the process; what a process should end with."""
    try:
        # Not cli.main(): that one has its own ways to report errors.
        with cli.make_context(PROGRAM, sys.argv[1:] if arguments is None else arguments) as context:
            cli.invoke(context)
        return OK
    except click.exceptions.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _drop_output()
        return OK
    except click.ClickException as error:
        code = error.exit_code
        _complain(f"{_sentence(error)}; see {PROGRAM} --help" if code == WRONG_USAGE else _sentence(error))
        return code
    except ConfigError as error:
        _complain(describe(error))
        return WRONG_USAGE
    except (click.Abort, KeyboardInterrupt):
        # Before a role has started, or after the second signal: what was asked for was not done.
        return FAILED
    except (CryprqError, OSError) as error:
        _complain(describe(error))
        _drop_output()
        return FAILED
    except Exception as error:
        _complain(f"this is a bug in {PROGRAM}: {describe(error)}; -v says more")
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            _log.debug("where it happened", exc_info=error)
        _drop_output()
        return FAILED


def _sentence(error: click.ClickException) -> str:
    text = error.format_message().strip().removesuffix(".")
    return text[:1].lower() + text[1:]


def _complain(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        click.echo(f"{PROGRAM}: {one_line(text)}", err=True)


def _drop_output() -> None:
    """What is still buffered for a standard output that takes nothing would become a traceback at the very end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
