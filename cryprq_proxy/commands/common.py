"""Shared by the commands: common options, and questions to the running client or exit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from ..errors import ConfigError, CryprqError
from ..status import Status

FILE: Final = click.Path(path_type=Path)
ANSWER_SECONDS: Final = 5.0
_SHOWN: Final = 40
"""Characters of a wrong value."""


def seconds(low: float, high: float, *, whole: bool = False) -> Callable[[str], float]:
    """The `type` of an option: a number of seconds, or with `whole` a whole number of them."""

    def read(text: str) -> float:
        try:
            number = int(text) if whole else float(text)
        except ValueError:
            number = -1
        if low <= number <= high:
            return number
        kind = "whole number" if whole else "number"
        raise click.BadParameter(
            f"expected a {kind} of seconds from {low:g} to {high:g}, got {text[:_SHOWN]!a}"
        )

    return read


def config_option[F: Callable[..., Any]](command: F) -> F:
    return click.option(
        "--config",
        type=FILE,
        metavar="F",
        help="The configuration (default: root's in /etc/cryprq, else in ~/.config/cryprq).",
    )(command)


def identity_option[F: Callable[..., Any]](command: F) -> F:
    return click.option("--identity", metavar="F", help="The file of this side's keys; made on first use.")(
        command
    )


def log_options[F: Callable[..., Any]](command: F) -> F:
    command = click.option(
        "--log-format", type=click.Choice(["text", "json"]), help="Format of the log on standard error."
    )(command)
    return click.option("-v", "--verbose", is_flag=True, help="Log everything.")(command)


def log_flags(verbose: bool, log_format: str | None) -> dict[str, str | None]:
    return {"log_level": "debug" if verbose else None, "log_format": log_format}


def merged(context: click.Context, verbose: bool, log_format: str | None) -> dict[str, str | None]:
    """-v and --log-format, which may come before or after the command."""
    behind = log_flags(verbose, log_format)
    return {name: value or context.obj[name] for name, value in behind.items()}


def act_for(config: Path | None) -> None:
    """As root, open the files of the configuration with the rights of the user to whom its directory belongs.

    Call it before anything else is read. Raises ConfigError.
    """
    from ..base.deputy import act_as_owner
    from ..base.paths import config_dir

    act_as_owner(config_dir() if config is None else config.parent)


def refuse_callers_exit(config: Path | None) -> None:
    """Raise ConfigError where root has nothing yet, and the person who called sudo has an exit: it would be another
    exit that is spoken to, with keys of its own."""
    from ..base.paths import callers_file, config_dir
    from ..base.program import to_run_as_root

    if config is not None or (callers := callers_file("exit.toml", "authorized", "invites")) is None:
        return
    if not any(os.path.lexists(config_dir() / name) for name in ("exit.toml", "authorized", "identity")):
        raise ConfigError(
            f"root has no exit in {config_dir()}, and yours is in {callers.parent}: call this without sudo, or make a "
            f"service of it with: {to_run_as_root('service install exit')}"
        )


def client_alone(directory: Path) -> Path | None:
    """The client's configuration in `directory`, if nothing of an exit is there."""
    from ..base.file_access import exists

    files = [directory / name for name in ("exit.toml", "authorized", "revoked", "invites")]
    client = directory / "client.toml"
    found = exists(client, "the configuration") and not any(exists(file, "the exit's file") for file in files)
    return client if found else None


def refuse_callers_keys(file: Path | None) -> None:
    """Raise ConfigError where root has no identity, no `file` is named, and the person who called sudo has one."""
    from ..base.paths import callers_file, default_identity

    if file is None and not os.path.lexists(default_identity()) and (callers := callers_file("identity")):
        raise ConfigError(
            f"root has no identity at {default_identity()}, and yours is {callers}: call this without sudo, or name "
            "the file"
        )


def ask(
    sockets: list[Path], command: str = "status", argument: str = "", timeout: float = ANSWER_SECONDS
) -> list[dict[str, Any]]:
    """All answers, as plain JSON values. Raises CryprqError without any."""
    from ..process.control import query

    return [
        answer
        for _, answer in _answers(sockets, lambda path: query(path, command, timeout, argument=argument))
    ]


def ask_status(sockets: list[Path]) -> list[Status]:
    """The status of all processes that answer. Raises CryprqError without any."""
    from ..process.control import query, read_status

    answers = _answers(sockets, lambda path: query(path, timeout=ANSWER_SECONDS))
    return [read_status(answer, path) for path, answer in answers]


def _answers[T](sockets: list[Path], query: Callable[[Path], T]) -> list[tuple[Path, T]]:
    answers, errors = [], []
    for path in sockets:
        try:
            answers.append((path, query(path)))
        except CryprqError as error:
            errors.append((path, error))
    if not answers:
        raise _no_answer(sockets, errors)
    return answers


def _no_answer(sockets: list[Path], errors: list[tuple[Path, CryprqError]]) -> CryprqError:
    """`errors` say for each socket why it did not answer."""
    from ..base.leftovers import left_by_any
    from ..process.control import NotRunning

    if left := left_by_any():
        return CryprqError(f"no cryprq-proxy is running; {left}")
    silent = [path for path, error in errors if isinstance(error, NotRunning)]
    if len(silent) == len(errors) and not any(map(os.path.lexists, silent)):
        tried = ", ".join(map(str, sockets))
        return CryprqError(
            f"no cryprq-proxy is running: start it, or say with --config which one to ask (tried: {tried})"
        )
    # That somebody else's runs says more than that nobody answers, and that more than a missing socket.
    return min(errors, key=lambda item: (item[0] in silent, not os.path.lexists(item[0])))[1]
