"""What a service will find, tried before anything is changed: all that `config check` looks at, in a copy of root's.

The copy lies where the configuration will lie, so that what is missing, unreadable or outside is found as the service
would find it. It is removed at once; what a crash leaves of it, in a directory of root, the next run removes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ...base.paths import Role
from ...config.check import problems, problems_of_defaults
from ...errors import ConfigError, reason_of
from .move import CarriedFile

MOST: int = 3
"""Sentences that are shown; `config check` shows all."""


def rehearse(files: Iterable[CarriedFile], shown: Path, target: Path, role: Role) -> None:
    """Raise ConfigError if `role` would not start with these `files` in `target`. The sentence names what is wrong
    as it is in `shown`, where they are up to now."""
    stage = target.with_name(f".{target.name}.check")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700)
        try:
            for file in files:
                _write(stage / file.name, file.data, target, stage, config=file.name == f"{role}.toml")
            config = stage / f"{role}.toml"
            wrong = problems(config, role) if config.exists() else problems_of_defaults(stage, role)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{stage} cannot be used: {reason_of(error)}") from None
    if wrong:
        more = f"; and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
        told = "; ".join(wrong[:MOST]).replace(str(stage), str(shown))
        raise ConfigError(f"the service would not start, so nothing was changed: {told}{more}")


def _write(path: Path, data: bytes, target: Path, stage: Path, *, config: bool) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if config:
        for quote in (b"'", b'"'):
            data = data.replace(quote + os.fsencode(target) + b"/", quote + os.fsencode(stage) + b"/")
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "wb") as file:
        file.write(data)
