"""The kernel's side of the utun devices of a fake Mac whose programs run as processes of their own.

A process asks for a device by a socket in the Mac's directory (`control_of`), and is given one end of a pair of
sockets, as the real one gets a control socket. The hub holds the other end in a thread of the tests' process. When the
device's end is closed, by its owner or by whatever ends that, the hub removes the interface with its addresses and
routes. `settle` does at once what has happened until now: after a process has ended, its devices are gone.

It tells of changed interfaces and routes as well, as the routing socket does (`watch_of`).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from cryprq_proxy.errors import ConfigError
from tests.support.macos import configd
from tests.support.macos.default import POINT
from tests.support.macos.disturbances import next_index, next_unit
from tests.support.macos.machine import FakeMac, connected, reached
from tests.support.macos.state import Interface
from tun.macos.device import AF_INET, AF_INET6, FAMILY_SIZE, OpenControl, unit_of

_BUFFER = 1 << 17
_FAMILIES = {4: AF_INET.to_bytes(FAMILY_SIZE), 6: AF_INET6.to_bytes(FAMILY_SIZE)}

type OnPacket = Callable[[str, bytes], None]


class UtunHub:
    """A context manager. `on_packet` gets each packet that comes out of a device, with the device's name, in the hub's
    thread or in that of `settle`."""

    def __init__(self, mac: FakeMac, on_packet: OnPacket) -> None:
        self._mac = mac
        self._on_packet = on_packet
        self._turn = threading.RLock()
        """Held by whoever works on what has happened."""
        self._devices: dict[str, socket.socket] = {}
        self._watchers: list[socket.socket] = []
        self._ended = False
        self._selector = selectors.DefaultSelector()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with reached(mac.directory) as path:
            self._server.bind(path)
        self._server.listen(16)
        self._server.setblocking(False)
        self._waking, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> UtunHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._waking.send(b"x")
        self._thread.join()
        self.settle()
        for sock in (*self._devices.values(), *self._watchers, self._server, self._waking, self._woken):
            sock.close()
        self._selector.close()
        (self._mac.directory / "kernel").unlink(missing_ok=True)

    def devices(self) -> list[str]:
        """Names of the devices that somebody holds."""
        self.settle()
        with self._turn:
            return sorted(self._devices)

    def write(self, name: str, packet: bytes) -> bool:
        """The kernel hands a packet to a device; False where there is none, or where its queue is full."""
        with self._turn:
            kernel = self._devices.get(name)
            if kernel is None:
                return False
            try:
                kernel.send(_FAMILIES[packet[0] >> 4] + packet)
            except (BlockingIOError, ConnectionError):
                return False
            return True

    def settle(self) -> None:
        """All that has happened until now is done when this returns."""
        with self._turn:
            while ready := self._selector.select(0):
                for key, _ in ready:
                    key.data()

    def _run(self) -> None:
        while not self._ended:
            self._selector.select()
            self.settle()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(64)

    def _accept(self) -> None:
        """Each asks once, as soon as it is connected."""
        asking, _ = self._server.accept()
        asking.setblocking(True)
        what = asking.recv(200).decode()
        if what == "changed":
            asking.close()
            self._tell()
        elif what == "watch":
            self._watchers.append(asking)
            asking.setblocking(False)
            self._selector.register(asking, selectors.EVENT_READ, lambda: self._unwatch(asking))
        else:
            with asking:
                if what:
                    self._make(asking, what)

    def _unwatch(self, watcher: socket.socket) -> None:
        self._selector.unregister(watcher)
        self._watchers.remove(watcher)
        watcher.close()

    def _tell(self) -> None:
        for watcher in self._watchers:
            with contextlib.suppress(OSError):
                watcher.send(b"changed")

    def _make(self, asking: socket.socket, wanted: str) -> None:
        unit = unit_of(wanted)
        with self._mac.change() as state:
            name = f"utun{unit - 1 if unit else next_unit(state)}"
            taken = state.interface(name) is not None
            if not taken:
                flags = [flag for flag in POINT if flag != "UP"]
                state.interfaces.append(Interface(name, next_index(state), flags, owner="a control socket"))
        if taken:
            asking.send(json.dumps({"taken": name}).encode())
            return
        theirs, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kernel.setblocking(False)
        self._devices[name] = kernel
        self._selector.register(kernel, selectors.EVENT_READ, lambda: self._read(name, kernel))
        with theirs, contextlib.suppress(ConnectionError):
            socket.send_fds(asking, [json.dumps({"name": name}).encode()], [theirs.fileno()])

    def _read(self, name: str, kernel: socket.socket) -> None:
        try:
            packet = kernel.recv(_BUFFER)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if packet:
            self._on_packet(name, packet[FAMILY_SIZE:])
            return
        self._selector.unregister(kernel)
        kernel.close()
        del self._devices[name]
        with self._mac.change() as state:
            if state.interface(name) is not None:
                configd.remove_interface(state, name)


def control_of(directory: Path) -> OpenControl:
    """Makes devices of the Mac in this directory, whose hub runs in another process."""

    def open_control(name: str) -> tuple[int, str]:
        unit_of(name)
        with connected(directory) as asking:
            asking.send(name.encode())
            answer, fds, _, _ = socket.recv_fds(asking, 200, 1)
        told = json.loads(answer)
        if not fds:
            raise ConfigError(f"there is a network device {told['taken']} already")
        os.set_inheritable(fds[0], False)
        os.set_blocking(fds[0], False)
        return fds[0], told["name"]

    return open_control


def watch_of(directory: Path) -> socket.socket:
    """In the routing socket's place: readable after each change of interfaces or routes."""
    asking = connected(directory)
    asking.send(b"watch")
    return asking
