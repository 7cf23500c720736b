"""All that is wrong with a configuration, found at once: what a start would say one by one, without starting.

    every key and value -> what they say together -> the files that they name

Each stage is looked at only when the one before is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..base.file_access import open_list
from ..base.paths import Role
from ..errors import ConfigError
from ..rules.engine import load_rules
from .client import ClientConfig, client_from
from .decode import decode_table, parse_toml, read_source
from .exit import ExitConfig, load_exit
from .whose import KINDS


def problems(file: Path, role: Role) -> list[str]:
    """One sentence for each; none for a configuration with which the role would start. The rule lists of a client are
    read, which takes seconds where they are long."""
    try:
        text, source, private = read_source(file, f"{role}.toml")
        errors: list[ConfigError] = []
        decode_table(KINDS[role], parse_toml(text, source), source, errors=errors)
        if not errors:
            if role == "client":
                errors = _wrong(_files_of_client(client_from(text, source, private, {})))
            else:
                errors = _wrong(_files_of_exit(load_exit(file)))
    except ConfigError as error:
        errors = [error]
    return list(map(str, errors))


def _wrong(checks: Iterator[Callable[[], object]]) -> list[ConfigError]:
    errors = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            errors.append(error)
    return errors


def _files_of_client(config: ClientConfig) -> Iterator[Callable[[], object]]:
    yield config.credentials
    yield from (choice.psk for choice in config.exits())
    for rule in config.rules():
        yield partial(load_rules, [rule], config.default, opener=open_list)


def _files_of_exit(config: ExitConfig) -> Iterator[Callable[[], object]]:
    yield config.psk
    yield config.metrics_token
    yield config.peers
