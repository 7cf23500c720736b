"""A device for IP packets: the packets of this machine as bytes in a buffer, and back.

`PacketDevice` is what a device does everywhere: read a file descriptor when the loop says that it is readable, hand
each packet to one callback, count. tun/linux/device.py and tun/macos/device.py say how the system makes one and what
stands in front of its packets.

The kernel's queue holds 1,000 packets, which is right for small ones and 60 MB of super-packets: a ping behind them
would wait for all. So the device is read empty at once, as the lane's socket is (carriers/lane/inbox.py). Small packets
on which no order depends (urgent.py) are handed on before the others, and marked. The others wait here, QUEUE_BYTES of
them at most: what exceeds that is dropped, from which a TCP sender learns that it is too fast.

Nothing is allocated per packet but the few integers that describe it, and a buffer for each that waits:

    [ HEADROOM ][ device header ][ packet, up to 65,535 bytes ]
                                 ^ START: what was read always begins here
"""

from __future__ import annotations

import errno
from asyncio import AbstractEventLoop
from collections import Counter, deque
from collections.abc import Callable
from io import FileIO
from typing import Final

from cryprq_proxy.base.faults import Faults
from cryprq_proxy.lane.slices import HEADROOM, MAX_PACKET, Run, Shape
from cryprq_proxy.status import DeviceStatus, Traffic
from tun.device.offload import VNET_SIZE, fit
from tun.device.packets import Drop
from tun.device.urgent import Urgency

START: Final = HEADROOM + VNET_SIZE
READS_PER_WAKEUP: Final = 32
BYTES_PER_WAKEUP: Final = 131072
"""Packets are read, and about so many bytes handed on, before other sockets get their turn: half a millisecond, the
longest wait for the other direction."""
BUFFERS: Final = 128
"""Packets that wait here at most; further small ones wait in the kernel's queue."""
QUEUE_BYTES: Final = 4194304
"""Bytes that wait here, about, until more is dropped. With an eighth of that, moments without a core cost losses:
thousands of retransmissions, and half of the rate of four flows."""

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

    def traffic(self) -> Traffic:
        """Bytes that the kernel has given, and those that it was given."""
        return Traffic(sent=self._reading.bytes, received=self.written_bytes)

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
    """Reads a device whenever the loop says that it is readable, from `__init__` to `stop`. The device owns `file`."""

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
        # The one that was used last is used next: it is in the cache.
        self._spare: list[memoryview] = []
        self._waiting: deque[tuple[memoryview, int, Shape]] = deque()
        self._held = 0
        """Bytes in `_waiting`."""
        self._urgency = Urgency()
        self._read_at = START - head
        self._loop = loop
        self._again = False
        self._stopped = False
        self._faults = Faults("drops packets of the interface")
        loop.add_reader(file.fileno(), self._readable)

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

    def _readable(self) -> None:
        if not self._again:  # else the turn of this moment has been, or comes
            self._turn()

    def _next_turn(self) -> None:
        self._again = False
        self._turn()

    def _turn(self) -> None:
        try:
            self._read()
            self._work_off()
            if not self._stopped:
                self._on_drained()
        except Exception as error:  # noqa: BLE001  a packet is lost: see cryprq_proxy/base/faults.py
            self._faults.report(error)
        if self._waiting and not self._again and not self._stopped:
            self._again = True
            self._loop.call_soon(self._next_turn)

    def _read(self) -> None:
        """Empty the device's queue as far as there is room here; what is urgent is handed on at once."""
        begin, spare, waiting = self._read_at, self._spare, self._waiting
        readinto, shape_of, look = self._file.readinto, self._shape_of, self._urgency.look
        for _ in range(READS_PER_WAKEUP):
            crowded = self._held >= QUEUE_BYTES
            if len(waiting) >= BUFFERS and not crowded:
                break  # these are small, and the kernel's queue may hold more of them
            if not spare:
                spare.append(memoryview(bytearray(START + MAX_PACKET)))
            buffer = spare[-1]
            try:
                size = readinto(buffer[begin:])
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
            elif urgent := look(buffer, START, end, shape):
                self._hand_on(buffer, end, urgent)
                if self._stopped:
                    break
            elif crowded:
                self._drops[Drop.QUEUE] += 1
            else:
                self._held += end - START
                waiting.append((spare.pop(), end, shape))

    def _work_off(self) -> None:
        """Hand on what waits, as much as a turn allows."""
        waiting, enough = self._waiting, self.bytes + BYTES_PER_WAKEUP
        while waiting and self.bytes < enough and not self._stopped:
            buffer, end, shape = waiting.popleft()
            self._spare.append(buffer)  # nothing is read before the callback returns
            self._held -= end - START
            self._hand_on(buffer, end, shape)

    def _hand_on(self, buffer: memoryview, end: int, shape: Shape) -> None:
        self.packets += 1
        self.bytes += end - START
        self._on_packet(buffer, START, end, shape)
