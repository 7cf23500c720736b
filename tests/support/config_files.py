"""Configuration files of the roles that a test starts, from settings as Python has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

type Settings = Mapping[str, Any]


def merge(*parts: Settings) -> dict[str, Any]:
    """Later settings win, table by table."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            known = merged.get(key)
            merged[key] = merge(known, value) if isinstance(known, dict) else value
    return merged


def toml(settings: Settings, table: str = "") -> str:
    """With tables in tables, and arrays of tables. A JSON string, number, list or boolean of these values is a TOML one
    too."""
    inner = {key: value for key, value in settings.items() if isinstance(value, dict) or _tables(value)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if key not in inner]
    parts = ["\n".join([*([f"[{table}]"] if table else []), *lines])]
    for key, value in inner.items():
        name = f"{table}.{key}" if table else key
        if isinstance(value, dict):
            parts.append(toml(value, name))
        else:
            parts += [f"[[{name}]]\n{toml(each)}" for each in value]
    return "\n\n".join(parts) + "\n"


def _tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
