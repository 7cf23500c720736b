"""All that is wrong with a configuration, found at once: what a start would say one by one, without starting.

    every key and value -> what they say together
                        -> the files that they name

What values say together is looked at only when each of them is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from ..base.file_access import exists, open_list, open_own
from ..base.paths import Role
from ..crypto.primitives import select_provider
from ..errors import ConfigError, reason_of
from ..exit.web_certificate import read_certificate
from ..rules.lists import load as load_lists
from .authorized import WHAT as LIST
from .client import client_from
from .decode import decode_table, parse_toml, read_source
from .exit import ExitConfig, WebSocketTable, exit_from
from .exits import ExitTable
from .faults import said_by
from .keys import load_identity
from .rules import RuleTable
from .secret_files import read_psk, read_token, read_user
from .tun import TunTable
from .whose import KINDS

type _Check = tuple[str, Callable[[], object]]
"""A key, and what reads the file that it names."""


def problems(file: Path, role: Role) -> list[str]:
    """One sentence for each, with file and key; none for a configuration with which the role would start. The rule
    lists of a client are read, which takes seconds where they are long."""
    try:
        text, source, private = read_source(file, f"{role}.toml")
        errors: list[ConfigError] = []
        values = decode_table(KINDS[role], parse_toml(text, source), source, errors=errors)
    except ConfigError as error:
        return [str(error)]
    found = list(map(str, errors))
    if not errors:
        make = (
            partial(client_from, text, source, private)
            if role == "client"
            else partial(exit_from, text, source)
        )
        found = [_named(sentence, source) for sentence in said_by(partial(make, {}))]
    else:
        # Of rows, some may be missing: their numbers would be wrong.
        values = {key: value for key, value in values.items() if key not in ("exit", "rule")}
    for key, check in (_client_files if role == "client" else _exit_files)(values, source):
        found += [f"{source}: {key}: {sentence.removeprefix(f'{source}: ')}" for sentence in said_by(check)]
    return found


def problems_of_defaults(directory: Path, role: Role) -> list[str]:
    """The same for a role without a configuration file in `directory`: of its keys and lists."""
    source = directory / f"{role}.toml"
    checks = _exit_files({}, source) if role == "exit" else _client_files({}, source)
    return [sentence for _, check in checks for sentence in said_by(check)]


def _named(sentence: str, source: Path) -> str:
    return sentence if str(source) in sentence else f"{source}: {sentence}"


# --- the files that it names ---


def _client_files(values: Mapping[str, Any], source: Path) -> Iterator[_Check]:
    yield from _identity(values, source)
    yield from _read(values, "user_file", read_user)
    yield from _read(values, "psk_file", read_psk)
    yield from _read(values, "ca", _open_authority)
    exits: Iterable[ExitTable] = values.get("exit", ())
    for number, exit in enumerate(exits, 1):
        yield from _read(structs.asdict(exit), "psk_file", read_psk, f"exit[{number}].")
        yield from _read(structs.asdict(exit), "ca", _open_authority, f"exit[{number}].")
    rules: Iterable[RuleTable] = values.get("rule", ())
    for number, rule in enumerate(rules, 1):
        yield from ((f"rule[{number}].lists", partial(_read_list, path)) for path in rule.lists)
    tun: TunTable = values.get("tun", TunTable())
    yield from (("tun.dns.blocklists", partial(_read_list, path)) for path in tun.dns.blocklists)


def _exit_files(values: Mapping[str, Any], source: Path) -> Iterator[_Check]:
    yield from _identity(values, source)
    yield from _read(values, "psk_file", read_psk)
    yield from _read(values, "metrics_token_file", read_token)
    yield "authorized", partial(_read_peers, values.get("authorized"), source.with_name("authorized"))
    web: WebSocketTable = values.get("websocket", WebSocketTable())
    if web.listen is not None:
        yield "websocket.certificate", partial(read_certificate, web.certificate, web.key)


def _read(
    values: Mapping[str, Any], key: str, read: Callable[[Path], object], table: str = ""
) -> Iterator[_Check]:
    path: Path | None = values.get(key)
    if path is not None:
        yield f"{table}{key}", partial(read, path)


def _identity(values: Mapping[str, Any], source: Path) -> Iterator[_Check]:
    """A missing one is made at the start."""
    path: Path = values.get("identity", source.with_name("identity"))

    def check() -> None:
        if exists(path, "the identity"):
            load_identity(select_provider(), path)

    yield "identity", check


def _read_list(path: Path) -> None:
    load_lists([path], [1], opener=open_list)


def _read_peers(named: Path | None, beside: Path) -> None:
    """As at a start: the list beside the configuration counts if none is named."""
    place = named or beside
    ExitConfig(authorized=place if named is not None or exists(place, LIST) else None).peers(place)


def _open_authority(path: Path) -> None:
    try:
        open_own(path, "the authority").close()
    except OSError as error:
        raise ConfigError(f"the authority {path} cannot be read: {reason_of(error)}") from None
