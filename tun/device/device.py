"""A device for IP packets: the packets of this machine as bytes in a buffer, and back.

`PacketDevice` is what a device does everywhere: drain a file descriptor when the loop says that it is readable, hand
each packet to one callback, count. linux.py and macos.py say how the system makes one and what stands in
front of its packets.

Nothing is allocated per packet but the few integers that describe it. There is one buffer per device:

    [ HEADROOM ][ device header ][ packet, up to 65,535 bytes ]
                                 ^ START: what was read always begins here
"""

from __future__ import annotations

import errno
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import Callable
from io import FileIO
from typing import Final

from cryprq_proxy.base.faults import Faults
from cryprq_proxy.lane.slices import HEADROOM, MAX_PACKET, Run, Shape
from cryprq_proxy.status import DeviceStatus
from tun.device.offload import VNET_SIZE, fit
from tun.device.packets import Drop

START: Final = HEADROOM + VNET_SIZE
READS_PER_WAKEUP: Final = 32
BYTES_PER_WAKEUP: Final = 131072
"""Packets, and about so many bytes, are taken before other sockets get their turn: half a millisecond, the longest wait
for the other direction. Polling is level-triggered, so the rest is read next."""

type OnPacket = Callable[[memoryview, int, int, Shape], None]
"""(buffer, start, end, shape). `buffer[start - HEADROOM:end]` is the callee's until it returns, not longer."""


class PacketDevice:
    """A device whose packets are the messages of a non-blocking file descriptor, `head` bytes in front of each.

    Owns the descriptor. Subclasses say what the bytes in front mean, by `_shape` and `write`.
    """

    def __init__(self, fd: int, name: str, mtu: int, head: int) -> None:
        self.name = name
        self.mtu = mtu
        self.drops: Counter[Drop] = Counter()
        self.written_packets = self.written_bytes = 0
        # FileIO and not os.readv: a call costs 100 ns less, and an empty queue is None where os raises, 600 ns less.
        self._file = FileIO(fd, "r+")
        self._head = head
        self._reading: Reading | NotReading = NotReading()

    def start(
        self,
        loop: AbstractEventLoop,
        on_packet: OnPacket,
        on_drained: Callable[[], None],
        on_lost: Callable[[OSError], None],
    ) -> None:
        """Call `on_packet` for each packet that comes, and `on_drained` after those of one wake-up.

        `on_lost` is called once, when another program has removed the device or moved it away; nothing comes then.
        """
        self._reading = Reading(
            self._file, self._head, self._shape, self.drops, loop, on_packet, on_drained, on_lost
        )

    def stop(self) -> None:
        """Read no more; the device stays, and packets wait in its queue."""
        self._reading.stop()

    def lost(self, error: OSError) -> None:
        """Another program has removed it, or moved it to another network namespace, where it would still be read."""
        self._reading.lost(error)

    def close(self) -> None:
        """Give the device back to the kernel, which removes it. Safe to call twice."""
        if not self._file.closed:
            self.stop()
            self._file.close()

    def write(self, buffer: memoryview, start: int, end: int, shape: Shape) -> bool:
        """Write the packet in `buffer[start:end]`, of a shape that `fit` or `describe` gave.

        HEADROOM bytes before `start` and the packet itself may be overwritten. False: dropped, and counted.
        """
        raise NotImplementedError

    def write_run(self, buffer: memoryview, start: int, end: int, run: Run) -> bool:
        """`fit` and `write` in one, where nothing looks at the packet in between. False: dropped, and counted."""
        shape = fit(buffer, start, end, run)
        if isinstance(shape, Drop):
            self.drops[shape] += 1
            return False
        return self.write(buffer, start, end, shape)

    def status(self) -> DeviceStatus:
        return DeviceStatus(
            name=self.name,
            mtu=self.mtu,
            reads=self._read_offloads(),
            writes=self._write_offloads(),
            read_packets=self._reading.packets,
            read_bytes=self._reading.bytes,
            written_packets=self.written_packets,
            written_bytes=self.written_bytes,
            drops={drop.value: count for drop, count in self.drops.items()},
        )

    def _shape(self, buffer: memoryview, start: int, end: int) -> Shape | Drop:
        """Read the bytes in front of a packet that has just been read."""
        raise NotImplementedError

    def _read_offloads(self) -> tuple[str, ...]:
        return ()

    def _write_offloads(self) -> tuple[str, ...]:
        return ()

    def _write_message(self, message: memoryview, size: int) -> int:
        """Write one packet of `size` bytes with its device header, and count it. Returns 0 or the errno."""
        try:
            written = self._file.write(message)
        except OSError as error:
            return error.errno or errno.EIO
        if written is None:
            return errno.EAGAIN
        self.written_packets += 1
        self.written_bytes += size
        return 0

    def _dropped(self, number: int) -> bool:
        self.drops[Drop.BUSY if number in (errno.EAGAIN, errno.ENOBUFS) else Drop.REFUSED] += 1
        return False


class NotReading:
    """In place of a Reading before the first one."""

    packets = bytes = 0

    def stop(self) -> None:
        """Nothing is read."""

    def lost(self, error: OSError) -> None:
        """Whoever sets it up is told by an error."""


class Reading:
    """Drains a device whenever the loop says that it is readable, from `__init__` to `stop`. The device owns `file`."""

    def __init__(
        self,
        file: FileIO,
        head: int,
        shape_of: Callable[[memoryview, int, int], Shape | Drop],
        drops: Counter[Drop],
        loop: AbstractEventLoop,
        on_packet: OnPacket,
        on_drained: Callable[[], None],
        on_lost: Callable[[OSError], None],
    ) -> None:
        """`shape_of` reads the `head` bytes in front of a packet. The rest is as in PacketDevice.start."""
        self.packets = self.bytes = 0
        self._file = file
        self._shape_of = shape_of
        self._drops = drops
        self._on_packet = on_packet
        self._on_drained = on_drained
        self._on_lost = on_lost
        self._buffer = memoryview(bytearray(START + MAX_PACKET))
        self._read_at = START - head
        self._inbox = self._buffer[self._read_at :]
        self._loop = loop
        self._stopped = False
        self._faults = Faults("drops packets of the interface")
        loop.add_reader(file.fileno(), self._drain)

    def stop(self) -> None:
        """Safe to call twice."""
        if not self._stopped:
            self._stopped = True
            self._loop.remove_reader(self._file.fileno())

    def lost(self, error: OSError) -> None:
        """Read no more and tell it, but once."""
        if not self._stopped:
            self.stop()
            self._on_lost(error)

    def _drain(self) -> None:
        try:
            if self._read():
                self._on_drained()
        except Exception as error:  # noqa: BLE001  a packet is lost: see cryprq_proxy/base/faults.py
            self._faults.report(error)

    def _read(self) -> bool:
        """Hand on the packets of one wake-up. False if a callback has stopped that."""
        buffer, inbox, begin = self._buffer, self._inbox, self._read_at
        readinto, shape_of, on_packet = self._file.readinto, self._shape_of, self._on_packet
        enough = self.bytes + BYTES_PER_WAKEUP
        for _ in range(READS_PER_WAKEUP):
            if self.bytes >= enough:
                break
            try:
                size = readinto(inbox)
            except OSError as error:
                # A removed device is readable for ever.
                self.lost(error)
                break
            if not size:
                break
            end = begin + size
            shape = shape_of(buffer, START, end) if end > START else Drop.SHORT
            if isinstance(shape, Drop):
                self._drops[shape] += 1
                continue
            self.packets += 1
            self.bytes += end - START
            on_packet(buffer, START, end, shape)
            # By the callback.
            if self._stopped:
                return False
        return True
