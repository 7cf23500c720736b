"""At which control sockets a command asks that is answered by what runs alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..errors import ConfigError
from .common import act_for


def control_sockets(config: Path | None) -> list[Path]:
    """The control sockets to ask: of the role that was started with the configuration, or would be; without one, those
    that the default files name and those at the default paths. Raises ConfigError."""
    from ..base.paths import ROLES, default_control_socket
    from ..base.paths import control_sockets as usual_places
    from ..config.control_place import named_socket
    from ..config.whose import role_of
    from .running import find

    try:
        act_for(config)
    except ConfigError:
        if config is not None:
            raise
        # The sockets at the default paths are asked all the same.
    if config is not None:
        role = role_of(config)
        if (named := named_socket(role, config)) is not None:
            return [named]
        running = [socket for each in ROLES if (socket := find(each, config).socket) is not None]
        return [*running, default_control_socket(role)][:1]
    found: list[Path] = []
    for role in ROLES:
        with contextlib.suppress(ConfigError):
            found += filter(None, [named_socket(role, None)])
    return list(dict.fromkeys([*found, *usual_places()]))
