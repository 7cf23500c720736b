"""Names of network devices, as they may stand in what is written for a packet filter."""

from __future__ import annotations

import re
from typing import Final

from cryprq_proxy.errors import ConfigError

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}")


def checked_name(device: str) -> str:
    """The same name. A `*` would match many devices, so it is not let through.

    Raises ConfigError if it cannot be the name of a device.
    """
    if _NAME.fullmatch(device) is None:
        raise ConfigError(
            f"{device!r} cannot be the name of a network device: choose up to 15 letters and digits"
        )
    return device
