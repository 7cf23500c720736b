"""The datagram lane: UDP datagrams beside the session's paths, keyed from its epochs (layout.py has the bytes).

Out: `seal_super` writes the header of slice k + 1 over the tail of slice k, which is already sealed; `seal_stream`
leaves alone what may have to go again. In: `open_batch` takes all datagrams of one receive and opens the slices of a
group from the last to the first: the payload of each slice overwrites the header of the slice after it, and the packet
or the stretch of a stream remains in one piece. Whatever can be done once per packet is not done per slice (figures in
docs/benchmarks.md).

No I/O here, no clock. Unauthenticated and malformed input is counted in `drops` and never raised.
"""

from __future__ import annotations

from collections.abc import Collection, Container
from math import inf
from typing import Final

from ..crypto.handshake import EpochSecrets
from ..crypto.primitives import Cipher, Entropy, new_aead
from ..errors import CloseReason, LocalError, PeerError
from .joining import Room
from .layout import (
    EXPRESS_KIND,
    HEADER,
    KIND,
    LANE_HEADER,
    MAX_STREAM,
    MAX_STREAM_SLICES,
    OVERHEAD,
    SLICE,
    STREAM_OVERHEAD,
    TAG,
)
from .opening import Opener, Receiving
from .sealed_train import Encrypt, Send, seal_slices, seal_stretch
from .slices import EXPRESS, FLAGS_MASK, MAX_SLICES, SLICE_HEADER, SLICE_SIZE, Drops, LaneSink, Shape

OUT_SIZE: Final = 144 * 1024
"""Bytes of a buffer that holds whatever is sealed at position 0 in one go."""
LINGER: Final = 10.0
"""Seconds for which receive keys are kept after the next epoch came into use."""
MAX_EPOCHS: Final = 4
MAX_SEALED: Final = 1 << 28
"""Largest number of datagrams under one key; the session rotates at half of it."""


class _LaneKeys(Receiving):
    """The keys of one epoch, both directions."""

    __slots__ = ("began", "encrypt", "peer_index", "retire_at")

    def __init__(self, cipher: Cipher, send: bytes, receive: bytes, index: int, number: int) -> None:
        super().__init__(new_aead(cipher, receive), index, number)
        self.encrypt: Encrypt = new_aead(cipher, send).encrypt_into
        self.peer_index = 0
        self.began = 0
        """The counter of its first datagram, once it is what this side sends with."""
        self.retire_at = inf


class Lane:
    """One session's lane, on one side. Its owner calls `expire` at `deadline`. After each `install`, `expire` or
    `open_batch` the owner stops dispatching to the indices in `dropped`.

    Pass the same memoryview object for the same buffer each time: the lane keeps views on it.
    """

    def __init__(
        self,
        dialler: bool,
        entropy: Entropy,
        sink: LaneSink,
        room: Room | None = None,
        taken: Container[int] = (),
    ) -> None:
        """`taken`: a live collection of the indices that other lanes of the same socket use."""
        self._dialler = dialler
        self._entropy = entropy
        self._taken = taken
        self._epochs: dict[int, _LaneKeys] = {}
        """By receive index, oldest first."""
        self._newest: _LaneKeys | None = None
        self._sending: _LaneKeys | None = None
        self._early_index = 0
        """What the peer has announced for the epoch after the newest one, whose secrets are not here yet: it came
        by a faster path. 0 for nothing."""
        self.counter = 0
        """That of the next datagram: it goes on from one key to the next."""
        self._room = room = room or Room()
        self._row = room.row
        self.drops = Drops()
        self._opener = Opener(self._epochs, sink, room, self.drops)
        self.dropped: list[int] = []
        """Receive indices no longer in use; the owner empties the list."""

    # --- epochs ----------------------------------------------------------------------------------------------------

    def install(self, cipher: Cipher, number: int, epoch: EpochSecrets, now: float) -> int:
        """This side knows the secrets of an epoch of the session: 0, or the one after the last.

        Returns the index under which this side now receives datagrams; announce it to the peer in a LANE frame.
        """
        if number != (0 if self._newest is None else self._newest.number + 1):
            raise LocalError(f"epoch {number} of the lane does not follow the one before")
        index = 0
        while not index or index in self._epochs or index in self._taken:
            index = int.from_bytes(self._entropy(4))
        send, receive = epoch.client_lane, epoch.exit_lane
        if not self._dialler:
            send, receive = receive, send
        self._newest = _LaneKeys(cipher, send, receive, index, number)
        self._epochs[index] = self._newest
        self.expire(now)
        if len(self._epochs) > MAX_EPOCHS:
            self._drop(next(epoch for epoch in self._epochs.values() if epoch is not self._sending))
        if self._early_index:
            self._newest.peer_index, self._early_index = self._early_index, 0
            self._move(self._newest, now)
        return index

    def announced(self, number: int, index: int, now: float) -> None:
        """The peer's LANE frame: datagrams under epoch `number` must carry `index`. Of the next epoch it is kept until
        that is installed; others that are not known are ignored.

        Raises PeerError (PROTOCOL) for index 0 and for a second index.
        """
        if self._newest is not None and number == self._newest.number + 1:
            self._early_index = _checked(index, self._early_index)
        for epoch in self._epochs.values():
            if epoch.number == number:
                epoch.peer_index = _checked(index, epoch.peer_index)
                self._move(epoch, now)
                return

    def expire(self, now: float) -> None:
        """Drop receive keys after their time."""
        for epoch in [epoch for epoch in self._epochs.values() if epoch.retire_at <= now]:
            self._drop(epoch)

    def deadline(self) -> float:
        """When `expire` has something to do."""
        return min((epoch.retire_at for epoch in self._epochs.values()), default=inf)

    @property
    def indices(self) -> Collection[int]:
        """The receive indices in use."""
        return self._epochs.keys()

    @property
    def ready(self) -> bool:
        """Whether anything can be sealed."""
        return self._sending is not None and self.counter - self._sending.began < MAX_SEALED

    @property
    def spent(self) -> int:
        """Datagrams under the keys of the newest epoch, in the busier direction: rotate at 2^27."""
        newest = self._newest
        if newest is None:
            return 0
        return max(self.counter - newest.began if newest is self._sending else 0, newest.heard)

    @property
    def incomplete(self) -> int:
        """Number of packets in several parts that never became complete."""
        return self._opener.assembly.given_up

    @property
    def advanced(self) -> bool:
        """Whether the last `open_batch` had the highest counter so far. An attacker that repeats or delays datagrams
        cannot cause it."""
        return self._opener.advanced

    def _move(self, epoch: _LaneKeys, now: float) -> None:
        """Send with `epoch` from now on, if the peer can open that. The exit waits for a datagram of the epoch: until
        then the client may not know the keys."""
        sending = self._sending
        if (
            not epoch.peer_index
            or (not self._dialler and not epoch.heard)
            or (sending is not None and sending.number >= epoch.number)
        ):
            return
        epoch.began = self.counter
        self._sending = epoch
        for earlier in self._epochs.values():
            if earlier.number < epoch.number and earlier.retire_at == inf:
                earlier.retire_at = now + LINGER

    def _drop(self, epoch: _LaneKeys) -> None:
        del self._epochs[epoch.index]
        self._opener.assembly.forget(epoch.index)
        self.dropped.append(epoch.index)

    # --- sealing ---------------------------------------------------------------------------------------------------

    def skip(self) -> int:
        """Leave out the next counter and return it: whoever acknowledges it has not received what it says."""
        self.counter += 1
        return self.counter - 1

    def seal(self, message: bytes, out: memoryview, position: int) -> int:
        """Write one datagram with `message` (type byte first) to `out` at `position`; return the position after it.

        Raises LocalError unless `ready`.
        """
        epoch = self._sending
        if epoch is None or not self.ready:
            raise LocalError("the lane has no key to send with")
        counter = self.counter
        self.counter = counter + 1
        body = position + HEADER
        end = body + len(message) + TAG
        LANE_HEADER.pack_into(out, position, KIND, epoch.peer_index, counter)
        epoch.encrypt(out[position + 1 : body], message, out[position:body], out[body:end])
        return end

    def seal_super(
        self,
        buffer: memoryview,
        start: int,
        end: int,
        shape: Shape,
        size: int,
        out: memoryview,
        position: int = 0,
    ) -> list[Send]:
        """Seal the packet at buffer[start:end] in slices, to `out` from `position` on.

        `size` is the largest UDP payload that the path carries. Returns the sends, one system call each: nearly always
        one, several for more than MAX_TRAIN datagrams or MAX_SEND bytes, none if the packet had to be dropped.
        Overwrites buffer[start - HEADROOM:end]. `out` needs OUT_SIZE bytes after `position`.
        """
        epoch = self._sending
        flags, gso, header = shape
        kind = KIND
        if flags & EXPRESS:
            kind, flags = EXPRESS_KIND, flags & FLAGS_MASK
        payload = end - start - header
        most = size - OVERHEAD - SLICE_SIZE - header
        if epoch is None or self.counter - epoch.began >= MAX_SEALED or most < 1:
            self.drops.unsent += 1
            return []
        if 0 < gso <= most and payload <= gso * MAX_SLICES:
            piece = gso
            count = -(-payload // piece)
        else:
            count = -(-payload // most)
            if count > MAX_SLICES:
                self.drops.unsent += 1
                return []
            piece = -(-payload // count)
        counter = self.counter
        # Count before sealing: after an error no counter may be used twice.
        self.counter = counter + count
        at = start - SLICE_SIZE
        if count == 1:
            SLICE_HEADER.pack_into(buffer, at, SLICE, flags, 0, 1, gso, header)
            body = position + HEADER
            finish = body + end - at + TAG
            LANE_HEADER.pack_into(out, position, kind, epoch.peer_index, counter)
            epoch.encrypt(out[position + 1 : body], buffer[at:end], out[position:body], out[body:finish])
            return [(position, finish, finish - position)]
        prefix = bytearray(SLICE_SIZE + header)
        SLICE_HEADER.pack_into(prefix, 0, SLICE, flags, 0, count, gso, header)
        prefix[SLICE_SIZE:] = buffer[start : start + header]
        return seal_slices(epoch, self._row, counter, count, prefix, piece, buffer, at, end, out, position)

    def seal_stream(
        self,
        stream: int,
        offset: int,
        buffer: memoryview,
        start: int,
        end: int,
        size: int,
        out: memoryview,
        position: int,
        ask: bool,
    ) -> tuple[list[Send], int, int]:
        """Seal the bytes of a stream at buffer[start:end], which begin at `offset`, to `out` from `position` on.

        Each datagram takes `size - STREAM_OVERHEAD` of them, the last one what remains; `ask`: it asks for an
        acknowledgement at once. `size` is the largest UDP payload that the path carries, and at least twice the
        STREAM_OVERHEAD. At most MAX_STREAM bytes and MAX_STREAM_SLICES datagrams at a time.

        Returns the sends, the counter of the first datagram, and their number. `buffer` remains as it is, since the
        bytes may have to go again. `out` needs OUT_SIZE bytes after `position`. Raises LocalError unless `ready`.
        """
        epoch = self._sending
        if epoch is None or not self.ready:
            raise LocalError("the lane has no key to send with")
        length, piece = end - start, size - STREAM_OVERHEAD
        if piece < STREAM_OVERHEAD or not 0 < length <= min(MAX_STREAM, piece * MAX_STREAM_SLICES):
            raise LocalError(f"{length} bytes of a stream do not go in datagrams of {size} bytes")
        count = -(-length // piece)
        counter = self.counter
        # As above: before sealing.
        self.counter = counter + count
        sends = seal_stretch(
            epoch, self._room, counter, count, stream, offset, buffer[start:end], piece, out, position, ask
        )
        return sends, counter, count

    # --- opening ---------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The session is over: drop what `flush` would deliver."""
        self._opener.forget()

    def flush(self) -> None:
        """At the end of a wake-up: deliver the slices that came one by one and were joined."""
        self._opener.flush()

    def open_batch(self, data: memoryview, size: int, segment: int, now: float) -> int:
        """Open what one receive brought: data[:size], datagrams of `segment` bytes; the last may be shorter.

        Everything authentic goes to the sink, in the order of arrival, before this or the next `flush` returns. Returns
        the number of authentic bytes (whole UDP payloads) and sets `advanced`. Seal answers after this call only.
        """
        heard = self._opener.open_batch(data, size, segment)
        if self._opener.advanced and not self._dialler:
            for epoch in list(self._epochs.values()):
                self._move(epoch, now)
        return heard


def _checked(index: int, before: int) -> int:
    """`index`, if the peer may announce it after `before` for one epoch (0: nothing yet). Raises PeerError."""
    if not index or before not in (0, index):
        raise PeerError(CloseReason.PROTOCOL, "the peer announced two lane indices for one epoch, or 0")
    return index
