"""A long, lossy cable: forwards Ethernet frames between two TAP devices, each later by a set time, some not at all.

    python bench/delayline.py HOST:DEVICE HOST:DEVICE --delay 0.020 --loss 0.01     HOST is a name of `ip netns`

It makes both devices, says "ready", and at the end of its input or on SIGTERM prints what it did, as a line of JSON.
The devices go with it. It stands in for netem, which many small kernels lack, and does what matters here:

    read      a batch of frames from a device, and the time once for the batch
    Line      each direction has one (line.py): what waits, is lost, late, or finds the line full
    write     what is due, in order, to the other device

A line holds up to `limit` bytes, in its queue and under way; what comes then is dropped. With a rate, frames leave one
after the other at that many bits a second, and the delay begins when a frame has left. Frames come as they go on a
wire, one segment each, so that chance takes segments. With --offload (and no loss) the devices pass the kernel's
super-packets of up to 64 KiB whole, with their virtio_net_hdr: that is for delays at several Gbit/s. Everything is one
thread; its times are good to some 300 us.

While it runs it obeys commands for both directions on its input, one a line: `blackout 3` (seconds), `udp off`,
`udp on`, `police BIT/S BYTES` (a token bucket for UDP), `police off`, `delay`, `loss`, `rate`, `limit`, `reorder CHANCE
SECONDS`. One that it does not know ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from line import LIMIT, Line

# include/uapi/linux/if_tun.h and sockios.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
OFFLOADS = 0x01 | 0x02 | 0x04
"""Checksum, TSOv4, TSOv6."""
OFFLOADS_UDP = 0x20 | 0x40
"""USOv4 and USOv6, from Linux 6.2 on."""
SIOCSIFTXQLEN = 0x8943

TX_QUEUE = 10_000
"""Frames that the kernel keeps for us between two reads."""
BATCH = 64
TURN = 0.0002
"""Seconds that frames gather between two turns, as they do at a network card: half of the CPU."""
FRAME = 9018
"""The largest frame without offload: jumbo."""
VIRTIO_HEADER = 10
"""struct virtio_net_hdr, in front of each frame with offload."""
SUPER_FRAME = VIRTIO_HEADER + 14 + 4 + 65_535


def open_tap(end: str, offload: bool) -> int:
    """A new TAP device at HOST:DEVICE, down and without address; its descriptor. Raises OSError."""
    netns, _, device = end.partition(":")
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if offload else 0)
    with open("/proc/thread-self/ns/net") as outside, open(Path("/run/netns", netns)) as inside:
        os.setns(inside.fileno(), os.CLONE_NEWNET)
        try:
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
            with socket.socket() as control:
                fcntl.ioctl(control, SIOCSIFTXQLEN, struct.pack("16si20x", device.encode(), TX_QUEUE))
        finally:
            os.setns(outside.fileno(), os.CLONE_NEWNET)
    if offload:
        try:
            fcntl.ioctl(tap, TUNSETOFFLOAD, OFFLOADS | OFFLOADS_UDP)
        except OSError:
            fcntl.ioctl(tap, TUNSETOFFLOAD, OFFLOADS)
    return tap


def _read(tap: int, size: int) -> list[bytes]:
    frames: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        # extend keeps what was read before there was no more
        frames.extend(os.read(tap, size) for _ in range(BATCH))
    return frames


def _write(tap: int, frames: list[bytes]) -> None:
    rest, done = iter(frames), False
    while not done:
        # EIO: the device is not up yet; EINVAL: an offload that this side does not take. The wire loses it.
        with contextlib.suppress(OSError):
            for frame in rest:
                os.write(tap, frame)
            done = True


class Input:
    """The commands that come on a descriptor. Reads what is there, and no more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._rest = b""

    def commands(self) -> list[str] | None:
        """The lines that are complete; None at the end of the input."""
        data = os.read(self.descriptor, 4096)
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def forward(taps: tuple[int, int], lines: tuple[Line, Line], given: Input, size: int = FRAME) -> None:
    """Runs until the end of the input. `lines[0]` goes from `taps[0]` to `taps[1]`, `lines[1]` back.

    Raises ValueError for a command that no line knows.
    """
    directions = ((taps[0], taps[1], lines[0]), (taps[1], taps[0], lines[1]))
    while True:
        times = [line.next for line in lines]
        first = min((at for at in times if at is not None), default=None)
        wait = None if first is None else max(0.0, first - time.monotonic())
        readable, _, _ = select.select([*taps, given.descriptor], [], [], wait)
        if given.descriptor in readable:
            commands = given.commands()
            if commands is None:
                return
            for command in commands:
                for line in lines:
                    line.obey(time.monotonic(), command)
        busy = False
        for source, sink, line in directions:
            if source in readable:
                frames = _read(source, size)
                line.offer(time.monotonic(), frames)
            if due := line.due(time.monotonic()):
                _write(sink, due)
                busy = True
        if busy:
            time.sleep(TURN)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ends", nargs=2, metavar="HOST:DEVICE", help="namespace and name of a TAP device")
    parser.add_argument("--delay", type=float, default=0.020, help="seconds in each direction (%(default)s)")
    parser.add_argument("--loss", type=float, default=0.0, help="chance of each frame (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="bit/s in each direction, 0 for none (%(default)s)"
    )
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help="bytes in the line in each direction (%(default)s)"
    )
    parser.add_argument(
        "--reorder", type=float, default=0.0, help="chance of each frame to come late (%(default)s)"
    )
    parser.add_argument("--later", type=float, default=0.005, help="by so many seconds (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the losses (%(default)s)")
    parser.add_argument("--offload", action="store_true", help="pass super-packets whole")
    options = parser.parse_args()
    if options.offload and (options.loss or options.reorder):
        parser.error("--loss and --reorder take frames of the wire; leave --offload out")
    if not all(":" in end for end in options.ends):
        parser.error("an end is HOST:DEVICE")
    return options


def main() -> int:
    options = arguments()
    try:
        lines = [
            Line(
                options.delay,
                options.loss,
                options.limit,
                options.seed + number,
                options.rate,
                reorder=options.reorder,
                later=options.later,
                header=VIRTIO_HEADER if options.offload else 0,
            )
            for number in (0, 1)
        ]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    taps = tuple(open_tap(end, options.offload) for end in options.ends)

    def ended(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ended)
    print("ready", flush=True)
    try:
        forward(
            (taps[0], taps[1]),
            (lines[0], lines[1]),
            Input(sys.stdin.fileno()),
            SUPER_FRAME if options.offload else FRAME,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    print(json.dumps([asdict(line.counters) for line in lines]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
