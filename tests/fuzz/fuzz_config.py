"""Whatever stands in a client.toml or exit.toml, decoding gives a configuration or raises ConfigError."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import get_type_hints

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy", "tomllib"]):
    from cryprq_proxy.config.client import ClientConfig, client_from
    from cryprq_proxy.config.exit import ExitConfig, exit_from
    from cryprq_proxy.errors import ConfigError

PEER = 'peer = "cryprq://' + "a" * 52 + '@exit.example:4433"\n'
KEYS = sorted({*get_type_hints(ClientConfig), *get_type_hints(ExitConfig)})


def one_input(data: bytes) -> None:
    text = data[1:].decode("utf-8", "replace")
    if data[:1] > b"\x80":  # most random texts are no TOML: give it a key, and quotes
        quote = "'" if data[0] & 1 else ""
        text = f"{KEYS[data[0] % len(KEYS)]} = {quote}{text}{quote}\n"
    with contextlib.suppress(ConfigError):
        assert isinstance(client_from(text, Path("client.toml"), True, {}), ClientConfig)
    with contextlib.suppress(ConfigError):
        assert isinstance(client_from(PEER + text, Path("client.toml"), False, {}), ClientConfig)
    with contextlib.suppress(ConfigError):
        assert isinstance(exit_from(text, Path("exit.toml"), {}), ExitConfig)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
