"""A JSON schema of each role's configuration, for editors: keys, kinds of values, ranges, and what is expected.

The structs of the configuration hold what the program uses, such as addresses. For each of them a struct of what stands
in the file is made, from the same annotations, and msgspec makes the schema of that. A string's own syntax is only told
in words: `config check` knows it.
"""

from __future__ import annotations

from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, Struct

from .decode import Text, is_table, row_type

_SIZE: Any = Annotated[str, Meta(pattern="^[0-9]{1,15} ?[KMGT]iB$")]


def schema(kind: type[Struct], title: str) -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) of the configuration `kind`."""
    made = msgspec.json.schema(_written(kind))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **made}


def _written(kind: type[Struct]) -> type[Struct]:
    """A struct of what stands in the file."""
    hints = get_type_hints(kind, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if field.required:
            fields.append((field.name, _type(hint)))
        else:
            fields.append((field.name, _type(hint), _default(hint, field.default)))
    about = {"__doc__": (kind.__doc__ or "").partition(" Raises ")[0]}
    return msgspec.defstruct(kind.__name__, fields, namespace=about, forbid_unknown_fields=True, kw_only=True)


def _type(hint: Any) -> Any:
    if (row := row_type(hint)) is not None:
        rows: Any = list[_written(row)]  # type: ignore[misc]
        return rows
    if is_table(hint):
        return _written(hint)
    mark: Text | Meta = hint.__metadata__[0]
    if isinstance(mark, Meta):
        value: Any = Annotated[hint.__origin__, mark]
        return _SIZE | value if mark.extra else value
    kinds: Any = str | int if mark.integers else str
    return Annotated[kinds | list[kinds] if mark.many else kinds, Meta(description=mark.expected)]


def _default(hint: Any, default: object) -> object:
    """What the file would have; nothing that the schema tells where the program keeps another form of it."""
    marked = not is_table(hint) and row_type(hint) is None and isinstance(hint.__metadata__[0], Meta)
    return default if marked else msgspec.field(default_factory=_untold)


def _untold() -> None:
    """Never called: msgspec leaves a default out that a function makes."""
