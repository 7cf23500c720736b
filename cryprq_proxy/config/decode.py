"""The strict decoder from TOML and flags to the values of a struct, with errors for the person.

The fields of a msgspec struct are the known keys. The annotation of each has a type and the result of a helper below: a
range or choice that msgspec checks, or a `Text` that reads a string. An error says which value is invalid (file and
key, or flag), what was expected and what was found.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import functools
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from ..base.file_access import exists
from ..base.paths import config_dir, read_text
from ..errors import ConfigError, CryprqError
from .faults import ConfigFaults, sentences_of

_BARE_KEY: Final = re.compile("[A-Za-z0-9_-]{1,60}")
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMGT]iB)?")
MAX_TABLES: Final = 10_000
"""Tables with one name, as [[rule]]."""
_hints: Final = functools.cache(get_type_hints)
"""Each call of the original compiles all annotations of a struct: milliseconds for every table."""
_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


# --- annotations of fields ---


class Text(Struct, frozen=True):
    """Annotates a field that is written as a string, or with `many` as one string or a list of strings.

    The text of a CryprqError from `parse` follows the place in the message. `expected` completes "expected ..., got an
    integer". With `integers` an integer counts as its decimal digits.
    """

    parse: Callable[[str], Any]
    expected: str
    many: bool = False
    integers: bool = False


def seconds(low: float, high: float) -> Meta:
    """A duration in seconds, from `low` to `high` inclusive."""
    return Meta(ge=low, le=high, description=f"a number of seconds from {low:g} to {high:g}")


def count(low: int, high: int) -> Meta:
    """A whole number, from `low` to `high` inclusive."""
    return Meta(ge=low, le=high, description=f"a whole number from {low} to {high}")


def size(low: int, high: int) -> Meta:
    """A number of bytes, from `low` to `high` inclusive; also strings like "16 MiB"."""
    expected = f'a size from {in_units(low)} to {in_units(high)}, in bytes or like "16 MiB"'
    return Meta(ge=low, le=high, description=expected, extra={"size": True})


def choice(*names: str) -> Meta:
    """One of the strings of a Literal type."""
    return Meta(description="one of " + ", ".join(f'"{name}"' for name in names))


def switch() -> Meta:
    return Meta(description="true or false")


def path() -> Text:
    """A file name; `~` is the home directory. The decoder resolves relative names."""
    return Text(_parse_path, "a string with the path of a file")


def paths() -> Text:
    """A list of file names, each as for `path`."""
    return Text(_parse_path, "a list of files", many=True)


def _parse_path(text: str) -> Path:
    if not text or not text.isprintable():
        raise ConfigError("expected the path of a file, without control characters")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text} is in an unknown home directory") from None


def in_units(number: int) -> str:
    """A size in the largest unit that divides it: 65536 is "64 KiB"."""
    unit, scale = max(
        ((unit, scale) for unit, scale in _UNITS.items() if number % scale == 0), key=lambda pair: pair[1]
    )
    return f"{number // scale} {unit or 'bytes'}"


# --- decoding ---


def decode_file(kind: type[Struct], text: str, source: Path) -> dict[str, Any]:
    """Decode the TOML in `text` to values for the fields of `kind`. Raises ConfigError.

    `source` begins every error; relative paths start in its directory.
    """
    return decode_table(kind, parse_toml(text, source), source)


def parse_toml(text: str, source: Path) -> dict[str, Any]:
    """The document in the text of the file `source`. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # The text of a recursion error is about Python; all others name the error and the line.
        twice = str(error).replace("Cannot overwrite a value", "a key or table stands there twice")
        reason = "too deeply nested" if isinstance(error, RecursionError) else twice
        raise ConfigError(f"{source}: not valid TOML: {reason}") from None


def decode_flags(kind: type[Struct], flags: Mapping[str, object]) -> dict[str, Any]:
    """Decode command-line flags to values for the fields of `kind`; None and () count as not given.

    Relative paths start at the working directory. Raises ConfigError.
    """
    hints = _hints(kind, include_extras=True)
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    return {
        key: _value(hints[key], value, f"--{key.replace('_', '-')}", Path()) for key, value in given.items()
    }


def decode_table(
    kind: type[Struct],
    table: Mapping[str, Any],
    source: Path,
    prefix: str = "",
    errors: list[ConfigError] | None = None,
) -> dict[str, Any]:
    """The same for parsed TOML; `prefix` is the name of the table and a dot. With a list of `errors`, each is put there
    instead of being raised, and its key has no value."""
    values: dict[str, Any] = {}
    for key, raw in table.items():
        with _noted(errors):
            values[key] = _entry(kind, key, raw, source, prefix, errors)
    return values


class _Noted(ConfigError):
    """What is wrong is in the list of errors already."""


@contextlib.contextmanager
def _noted(errors: list[ConfigError] | None) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        if errors is None:
            raise
        if not isinstance(error, _Noted):
            errors.append(error)


def _entry(
    kind: type[Struct], key: str, raw: object, source: Path, prefix: str, errors: list[ConfigError] | None
) -> Any:
    """The value of one key."""
    hints = _hints(kind, include_extras=True)
    if key not in hints:
        raise ConfigError(f"{source}: {prefix}{_shown(key)}: unknown key; {_advice(kind, key, prefix)}")
    hint, where = hints[key], f"{source}: {prefix}{key}"
    if (row := row_type(hint)) is not None:
        if not isinstance(raw, list):
            raise ConfigError(f"{where}: expected tables, each under [[{prefix}{key}]], got {_kind(raw)}")
        if len(raw) > MAX_TABLES:
            raise ConfigError(f"{where}: expected at most {MAX_TABLES} tables, got {len(raw)}")
        rows = []
        for number, each in enumerate(raw, 1):
            with _noted(errors):
                rows.append(_table(row, each, source, f"{prefix}{key}[{number}]", errors))
        return tuple(rows)
    if is_table(hint):
        return _table(hint, raw, source, f"{prefix}{key}", errors)
    return _value(hint, raw, where, source.parent)


def _table(
    kind: type[Struct], raw: object, source: Path, name: str, errors: list[ConfigError] | None
) -> Struct:
    """The struct of one table; errors call it `name`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: {name}: expected a table, [{name}], got {_kind(raw)}")
    known = 0 if errors is None else len(errors)
    inner = decode_table(kind, raw, source, f"{name}.", errors)
    if errors is not None and len(errors) > known:
        raise _Noted
    missing = [
        field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in inner
    ]
    if missing:
        raise ConfigError(f"{source}: {name}: {missing[0]} is missing; every one of these tables needs it")
    try:
        return kind(**inner)
    except ConfigError as error:
        raise ConfigError(f"{source}: {name}: {error}" if "[" in name else f"{source}: {error}") from None


def _value(hint: Any, raw: object, where: str, base: Path) -> Any:
    """`raw` as a value of the annotated type `hint`."""
    mark: Text | Meta = hint.__metadata__[0]
    if isinstance(mark, Text):
        if not mark.many:
            return _text(mark, raw, where, base)
        items = raw if isinstance(raw, list | tuple) else (raw,)
        return tuple(_text(mark, item, where, base) for item in items)
    if mark.extra and isinstance(raw, str):
        match = _SIZE.fullmatch(raw)
        raw = int(match[1]) * _UNITS[match[2]] if match else raw
    try:
        return msgspec.convert(raw, hint)
    except msgspec.ValidationError:
        raise ConfigError(f"{where}: expected {mark.description}, got {_kind(raw)}") from None


def _text(mark: Text, raw: object, where: str, base: Path) -> Any:
    if mark.integers and isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < 10**18:
        raw = str(raw)
    if not isinstance(raw, str):
        raise ConfigError(f"{where}: expected {mark.expected}, got {_kind(raw)}")
    try:
        value = mark.parse(raw)
    except CryprqError as error:
        raise ConfigError(f"{where}: {error}") from None
    return base / value if isinstance(value, Path) else value


def is_table(hint: Any) -> bool:
    """Whether a field is a table."""
    return isinstance(hint, type) and issubclass(hint, Struct)


def row_type(hint: Any) -> type[Struct] | None:
    """The struct type of a field that is a `tuple[Struct, ...]`."""
    arguments = get_args(hint)
    if get_origin(hint) is tuple and len(arguments) == 2 and is_table(arguments[0]):
        row: type[Struct] = arguments[0]
        return row
    return None


# --- a whole configuration ---


def with_flags(
    kind: type[Struct], tun: type[Struct], values: Mapping[str, Any], flags: Mapping[str, object]
) -> dict[str, Any]:
    """The values of flags. A flag "tun.KEY" replaces that key of the table in the file."""
    inner = {key[4:]: value for key, value in flags.items() if key.startswith("tun.")}
    given = decode_flags(kind, {key: value for key, value in flags.items() if not key.startswith("tun.")})
    section = decode_flags(tun, inner)
    if section:
        given["tun"] = msgspec.structs.replace(values.get("tun", tun()), **section)
    return given


def read_source(file: Path | None, name: str) -> tuple[str, Path, bool]:
    """Text, path and privacy of the configuration; the text is empty if the default file does not exist."""
    source = config_dir() / name if file is None else file
    if file is None and not exists(source, "the configuration"):
        return "", source, True
    text, private = read_text(source, "the configuration")
    return text, source, private


def build[T: Struct](kind: type[T], values: Mapping[str, Any], text: str, source: Path) -> T:
    """The configuration of a role; the identity lies beside `source` unless another file is named."""
    try:
        return kind(**{"identity": source.with_name("identity"), **values})
    except ConfigError as error:
        if not text:
            raise
        raise ConfigFaults(f"{source}: {sentence}" for sentence in sentences_of(error)) from None


# --- words ---


def _kind(raw: object) -> str:
    """Describe the found value. Strings are not shown, since they may be misplaced secrets."""
    match raw:
        case bool():
            return "true" if raw else "false"
        case int():
            return f"the integer {raw}" if abs(raw) < 10**18 else "an enormous integer"
        case float():
            return f"the number {raw:g}"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case dict():
            return "a table"
        case datetime.datetime() | datetime.date() | datetime.time():
            return "a date or time"
    return f"a {type(raw).__name__}"


def _shown(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else ascii(key[:60])


def _advice(kind: type[Struct], key: str, prefix: str) -> str:
    """The most similar key of the whole file; else the keys of this table."""
    below = {name.rpartition(".")[2]: f"{prefix}{name}" for name in _keys(kind)}
    names = difflib.get_close_matches(key[:60].lower().replace("-", "_"), below, n=1)
    if names:
        return f'did you mean "{below[names[0]]}"?'
    return f"known keys are {', '.join(_hints(kind))}"


def _keys(kind: type[Struct]) -> Iterator[str]:
    """The dotted names of all keys. Those of this table come last, so that they win over equal names in others."""
    hints = _hints(kind)
    for name, hint in hints.items():
        table = hint if is_table(hint) else row_type(hint)
        if table is not None:
            yield from (f"{name}.{inner}" for inner in _keys(table))
    yield from hints
