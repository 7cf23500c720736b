"""Direct connections: from this machine to the destination, past every exit, because a rule says so.

A DirectStream is to its handler like a stream of the link (AnyStream), with the destination's socket where a stream
of the link has the peer. So the front-ends and the Relay serve both alike:

    application's socket <-> Relay, or HTTP <-> DirectStream <-> destination's socket

What the destination does not take stays in the application's socket, what the application does not take stays in the
destination's; half-closes and resets pass in both directions.

Names are asked of this machine's own resolver, off the event loop. There is no egress policy here: what may use the
proxy runs on this machine or was allowed by its owner. Two things are forbidden: a connection to the proxy itself, and
one to this machine by a name whose rule does not say so (own_listeners.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Any, Final

from ..address import Destination
from ..base.buffers import SHARED
from ..base.descriptors import for_direct
from ..base.faults import report_fault
from ..base.sockets import CONNECT_TIMEOUT, keep_alive, set_end_on_close, set_reset_on_close
from ..errors import LocalError, StreamReason
from ..outbound.address_race import Cancellable
from ..outbound.backlog import Backlog
from ..outbound.dialer import connect_target
from ..outbound.relay import SLOTS
from ..outbound.resolving.resolver import Resolver, SystemResolver
from ..outbound.udp_association import MAX_SOCKETS, UdpAssociation
from ..outbound.waiting_datagrams import HeldBytes
from ..session.retention import SLOT_HEADROOM, SlotPool
from ..session.streams import Half, StreamHandler
from ..session.turns import TurnBudget
from ..session.wire import MAX_DATA, StreamProtocol
from .direct_sockets import DirectSockets
from .own_listeners import DirectPolicy
from .requests import StreamRequest
from .split_association import DatagramsOnly

WINDOW: Final = 262_144
"""Bytes that the handler may have received and not yet consumed."""


class Direct:
    """All direct connections of a client. `stop` ends them. `refused` counts those that could not be made, by
    reason."""

    def __init__(
        self, slots: SlotPool, resolver: Resolver | None = None, timeout: float = CONNECT_TIMEOUT
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.slots = slots
        self.timeout = timeout
        self.incoming = SHARED.scratch("arriving from direct targets", WINDOW)
        self.policy = DirectPolicy()
        self._system = SystemResolver()
        self.resolver = self._system.of("applications") if resolver is None else resolver
        self.streams: dict[int, DirectStream | DirectAssociation] = {}
        """By number, oldest first."""
        self.held = HeldBytes()
        self.turn = TurnBudget(self.loop.call_soon)
        """The addresses of names, and datagrams to names, of all applications together."""
        self.sockets = DirectSockets(for_direct())
        self.refused: Counter[Any] = Counter()
        self._last = 0

    def start(self, request: StreamRequest) -> None:
        """Serve a request as a session would: with a stream, whose label it becomes, or with a refusal."""
        self._last += 1
        if request.protocol is StreamProtocol.UDP:
            association = DirectAssociation(self, self._last, request)
            self.streams[self._last] = association
            request.begin(association)
            association.start()
        else:
            stream = DirectStream(self, self._last, request)
            self.streams[self._last] = stream
            request.begin(stream)
            stream.start()

    def never_to(self, listening: Destination) -> None:
        """Never connect to `listening`, where the proxy listens."""
        self.policy.listening.append(listening)

    def allow_again(self, listening: Destination) -> None:
        """It listens there no longer."""
        self.policy.listening.remove(listening)

    def stop(self) -> None:
        """End all of them, with resets; pending look-ups are cancelled."""
        for stream in list(self.streams.values()):
            handler = stream.handler
            stream.reset(StreamReason.SHUTTING_DOWN)
            handler.reset(StreamReason.SHUTTING_DOWN)
        self._system.close()


class DirectStream:
    """A stream to a destination that this machine itself connects to; see session.streams.Stream for the calls."""

    __slots__ = (
        "_attempt", "_backlog", "_consumed", "_direct", "_failed", "_fd", "_reading", "_sock", "_starved",
        "_turn", "destination", "handler", "id", "label", "opened", "protocol", "receive_half", "received",
        "send_half", "sent",
    )  # fmt: skip
    frame_limit = MAX_DATA

    def __init__(self, direct: Direct, id: int, request: StreamRequest) -> None:
        self._direct = direct
        self.id = id
        self.protocol = request.protocol
        self.destination = request.destination
        self.handler = request.handler
        self.label = request
        self.opened = False
        self.send_half = Half.OPEN
        self.receive_half = Half.UNBORN
        self.sent = 0
        self.received = 0
        self._consumed = 0
        self._sock: socket.socket | None = None
        self._fd = -1
        self._attempt: Cancellable | None = None
        self._backlog = Backlog()
        self._starved = False
        self._turn = False
        self._reading = False
        self._failed = False

    # --- connecting ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, unless the stream was reset already."""
        if self.send_half is Half.CLOSED:
            return
        direct = self._direct
        attempt = connect_target(
            direct.loop,
            self.destination,
            direct.policy,
            direct.resolver,
            self._connected,
            direct.timeout,
            direct.turn,
            direct.sockets,
        )
        if not self.opened:
            self._attempt = attempt

    def _connected(self, sock: socket.socket | None, reason: StreamReason | None) -> None:
        self._attempt = None
        if self.send_half is Half.CLOSED:
            if sock is not None:
                sock.close()
        elif sock is None:
            self._end()
            self._direct.refused[reason] += 1
            self.handler.refused(reason or StreamReason.GENERAL)
        else:
            set_reset_on_close(sock)
            keep_alive(sock)
            self._sock, self._fd = sock, sock.fileno()
            self.opened = True
            self.receive_half = Half.OPEN
            try:
                self.handler.opened()
                self._read_on()
            except Exception as error:  # noqa: BLE001  nobody else would end the two sockets
                self._crash(error)

    # --- from the destination --------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        if self.receive_half is Half.OPEN and not self._reading:
            self._reading = True
            self._direct.loop.add_reader(self._fd, self._on_readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._direct.loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        try:
            self._receive()
        except Exception as error:  # noqa: BLE001  the socket stays readable: the loop would call again at once
            self._crash(error)

    def _receive(self) -> None:
        incoming, room = self._direct.incoming, WINDOW - (self.received - self._consumed)
        if room <= 0 or self._sock is None:
            self._pause()
            return
        try:
            size = self._sock.recv_into(incoming[:room])
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._fail()
            return
        if size:
            self.received += size
            self.handler.data_received(incoming[:size])
            return
        self._pause()
        self.receive_half = Half.CLOSED
        if self.send_half is Half.CLOSED:
            self._end_in_order()
        self.handler.eof_received()

    def consumed(self, size: int) -> None:
        self._consumed += size
        if self.received - self._consumed <= WINDOW >> 1:
            self._read_on()

    def progress(self) -> int:
        return self.sent + self.received + self._consumed

    # --- to the destination ----------------------------------------------------------------------------------------

    def request_room(self) -> int:
        if self.send_half is not Half.OPEN or self._failed:
            return 0
        if self._backlog or self._sock is None:
            self._starved = True
            return 0
        return SLOTS * MAX_DATA

    def wait_for_turn(self) -> None:
        if not self._turn:
            self._turn = True
            self._direct.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = False
        if self.send_half is Half.OPEN and not self._failed:
            try:
                self.handler.writable()
            except Exception as error:  # noqa: BLE001  else nobody would call it again
                self._crash(error)

    def waits(self) -> bool:
        return self._turn or self._starved

    def send_slot(self, slot: memoryview, size: int) -> None:
        self.send(slot[SLOT_HEADROOM : SLOT_HEADROOM + size])
        self._direct.slots.give(slot)

    def send(self, data: bytes | memoryview) -> None:
        if self.send_half is not Half.OPEN:
            raise LocalError("data was sent on a stream whose sending half has ended")
        size = len(data)
        self.sent += size
        if self._failed:
            return
        taken = 0
        if not self._backlog and self._sock is not None:
            try:
                taken = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                # Not from within a call of the handler's own.
                self._failed = True
                self._direct.loop.call_soon(self._fail)
                return
        if taken < size:
            if not self._backlog and self._sock is not None:
                self._direct.loop.add_writer(self._fd, self._on_writable)
            self._backlog.append(data[taken:])

    def _on_writable(self) -> None:
        try:
            self._write_backlog()
        except Exception as error:  # noqa: BLE001  as in _on_readable
            self._crash(error)

    def _write_backlog(self) -> None:
        if self._sock is None:
            return
        try:
            self._backlog.write(self._sock)
        except OSError:
            self._fail()
            return
        if self._backlog:
            return
        self._direct.loop.remove_writer(self._fd)
        if self.send_half is Half.FINISHING:
            self._shut_down()
        elif self._starved:
            self._starved = False
            self.handler.writable()

    def finish(self) -> None:
        if self.send_half is not Half.OPEN:
            raise LocalError("a stream was finished twice")
        self.send_half = Half.FINISHING
        if not self._backlog:
            self._shut_down()

    def _shut_down(self) -> None:
        self.send_half = Half.CLOSED
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
        if self.receive_half is Half.CLOSED:
            self._end_in_order()

    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None:
        raise LocalError("a datagram was sent on a stream of bytes")

    # --- the end ---------------------------------------------------------------------------------------------------

    def reset(self, reason: StreamReason) -> None:
        if self._direct.streams.get(self.id) is not self:
            return
        if self._attempt is not None:
            self._attempt.cancel()
        self._end()

    def _crash(self, error: Exception) -> None:
        report_fault("ends a direct connection", error)
        self._fail()

    def _fail(self) -> None:
        """The destination, or the network, broke the connection."""
        if self._direct.streams.get(self.id) is self:
            self._end()
            self.handler.reset(StreamReason.CONNECTION_RESET)

    def _end_in_order(self) -> None:
        if self._sock is not None:
            set_end_on_close(self._sock)
        self._end()

    def _end(self) -> None:
        """Close the socket: with a reset, unless both directions have ended."""
        self._direct.streams.pop(self.id, None)
        self.send_half = self.receive_half = Half.CLOSED
        self._starved = False
        self._backlog.clear()
        self._pause()
        if self._sock is not None:
            self._direct.loop.remove_writer(self._fd)
            self._sock.close()
            self._sock = None


class DirectAssociation(DatagramsOnly):
    """A UDP association of this machine's own sockets: one for each family, as at the exit."""

    protocol = StreamProtocol.UDP

    def __init__(self, direct: Direct, id: int, request: StreamRequest) -> None:
        self._direct = direct
        self.id = id
        self.destination = request.destination
        self.handler: StreamHandler = request.handler
        self.label = request
        self.opened = False
        self.sent = 0
        self.received = 0
        self._sockets: UdpAssociation | None = None

    def start(self) -> None:
        """Nothing has to be connected, but there must be room for the sockets."""
        direct = self._direct
        if self.id not in direct.streams:
            return
        if not direct.sockets.take(MAX_SOCKETS):
            del direct.streams[self.id]
            direct.refused[StreamReason.LIMIT] += 1
            self.handler.refused(StreamReason.LIMIT)
        else:
            self._sockets = UdpAssociation(
                direct.loop,
                self._answered,
                self.reset,
                direct.policy,
                direct.resolver,
                direct.held,
                direct.turn,
            )
            self.opened = True
            self.handler.opened()

    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None:
        if self._sockets is not None:
            self.sent += len(payload)
            self._sockets.datagram_received(destination, payload)

    def _answered(self, source: Destination, payload: bytes) -> None:
        self.received += len(payload)
        self.handler.datagram_received(source, memoryview(payload))

    def reset(self, reason: StreamReason) -> None:
        self._direct.streams.pop(self.id, None)
        sockets, self._sockets = self._sockets, None
        if sockets is not None:
            self._direct.sockets.give_back(MAX_SOCKETS)
            sockets.reset(reason)
