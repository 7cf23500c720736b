"""The JSON schema for editors: it takes what the program takes, and no wrong key, value or range."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cryprq_proxy.cli import cli

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "array": list,
    "object": dict,
}


def schema(role: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(CliRunner().invoke(cli, ["config", "schema", role]).stdout)
    return made


WORDS = {"$ref", "$defs", "$schema", "title", "description", "default", "type", "properties", "required"}
WORDS |= {"additionalProperties", "anyOf", "enum", "items", "minimum", "maximum", "pattern"}
"""Of JSON Schema, as far as ours uses it; those that `errors` does not look at decide nothing."""


def errors(schema: dict[str, Any], part: dict[str, Any], value: Any, at: str = "") -> Iterator[str]:
    """Where `value` breaks the schema."""
    assert part.keys() <= WORDS
    if "$ref" in part:
        yield from errors(schema, schema["$defs"][part["$ref"].rpartition("/")[2]], value, at)
    elif "anyOf" in part:
        if all(list(errors(schema, each, value)) for each in part["anyOf"]):
            yield at
    elif not fits(part, value):
        yield at
    elif isinstance(value, list):
        for each in value:
            yield from errors(schema, part["items"], each, at)
    elif isinstance(value, dict):
        assert part["additionalProperties"] is False
        yield from (f"{at}.{name}" for name in part["required"] if name not in value)
        for name, each in value.items():
            known = part["properties"].get(name)
            yield from [f"{at}.{name}"] if known is None else errors(schema, known, each, f"{at}.{name}")


def fits(part: dict[str, Any], value: Any) -> bool:
    """Whether the value alone is right, without what is in it."""
    if "enum" in part:
        return value in part["enum"]
    kind = part["type"]
    if not isinstance(value, KINDS[kind]) or isinstance(value, bool) != (kind == "boolean"):
        return False
    if kind in ("integer", "number"):
        return bool(part.get("minimum", value) <= value <= part.get("maximum", value))
    return "pattern" not in part or re.search(part["pattern"], str(value)) is not None


def wrong(role: str, text: str) -> list[str]:
    made = schema(role)
    return list(errors(made, made, tomllib.loads(text)))


def sample(role: str) -> str:
    return re.sub(r"^#(?=[a-z\[])", "", (CONFIGS / f"{role}.toml").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("role", ["client", "exit"])
def test_samples_are_right_and_have_every_key(role: str) -> None:
    assert wrong(role, sample(role)) == []
    made, text = schema(role), sample(role)
    for table in made["$defs"].values():
        for name in table["properties"]:
            assert re.search(rf"^(?:{name} = |\[+(?:\w+\.)*{name}\]+$)", text, re.MULTILINE), name


@pytest.mark.parametrize(
    ("role", "text", "where"),
    [
        ("client", "peeer = 1", ".peeer"),
        ("client", "listen = true", ".listen"),
        ("client", "listen = 1080", None),
        ("client", "keepalive = 0", ".keepalive"),
        ("client", "keepalive = 600.5", ".keepalive"),
        ("client", "keepalive = 10", None),
        ("client", "via = 1", ".via"),
        ("client", 'carrier = "pigeon"', ".carrier"),
        ("client", 'limits.window_pool = "64 MiB"', None),
        ("client", 'limits.window_pool = "64 MB"', ".limits.window_pool"),
        ("client", "limits.window_pool = 1", ".limits.window_pool"),
        ("client", 'rule = [{ports = [1, "2-3"]}]', ".rule.to"),
        ("client", 'rule = [{to = "block", ports = [1, "2-3"]}]', None),
        ("client", 'rule = [{to = "block", port = 1}]', ".rule.port"),
        ("exit", "allow_private = true", None),
        ("exit", "tun.pool4 = 3", ".tun.pool4"),
        ("exit", "via = true", ".via"),
    ],
)
def test_what_it_takes(role: str, text: str, where: str | None) -> None:
    assert wrong(role, text) == ([] if where is None else [where])


def test_defaults_and_words_are_told() -> None:
    client = schema("client")["$defs"]["ClientConfig"]["properties"]
    assert client["keepalive"]["default"] == 10
    assert client["carrier"]["default"] == "auto"
    assert client["listen"]["description"] == 'a string like "127.0.0.1:1080", or a port'
    assert "default" not in client["control_socket"], "it depends on the machine"
