"""A utun of the fake Mac: a pair of sockets in the control socket's place, and the interface in the Mac's state."""

from __future__ import annotations

import socket

from cryprq_proxy.errors import ConfigError
from tests.support.macos import configd
from tests.support.macos.default import POINT
from tests.support.macos.disturbances import next_index, next_unit
from tests.support.macos.machine import FakeMac
from tests.support.macos.state import Interface
from tun.macos.device import unit_of


class UtunPair:
    """Makes one device, as an OpenControl of tun/macos/device.py, and is the kernel's end of it."""

    def __init__(self, mac: FakeMac) -> None:
        self._mac = mac
        self.name = ""
        self.kernel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Carries whole packets, each behind its family."""

    def __call__(self, name: str) -> tuple[int, str]:
        unit = unit_of(name)
        with self._mac.change() as state:
            number = unit - 1 if unit else next_unit(state)
            self.name = f"utun{number}"
            if state.interface(self.name) is not None:
                raise ConfigError(f"there is a network device {name} already")
            flags = [flag for flag in POINT if flag != "UP"]
            state.interfaces.append(Interface(self.name, next_index(state), flags, 1500, owner="us"))
        self.kernel.close()
        ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.kernel.setblocking(False)
        return ours.detach(), self.name

    def end(self) -> None:
        """As the kernel ends it when its control socket is closed, by us or by a kill."""
        self.kernel.close()
        with self._mac.change() as state:
            if state.interface(self.name) is not None:
                configd.remove_interface(state, self.name)
