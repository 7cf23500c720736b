"""What a client's packets may do at the exit, and where the kernel's packets go; device and kernel are fakes."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base import leftovers
from cryprq_proxy.carriers.lane.packet_link import PacketLink
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.lane.slices import HEADROOM, NEEDS_CSUM, TCP4, Run, Shape
from cryprq_proxy.status import DeviceStatus, TunNetworkStatus
from tests.support.settings import exit_network_settings
from tun import exit_network
from tun.device.packets import Drop, datagram, parse
from tun.exit_network import ANSWERS, VERDICTS, ExitNetwork
from tun.journal import Journal
from tun.linux import exit_kernel, sysctl
from tun.linux import system as linux
from tun.linux.device import Tun
from tun.linux.firewall import exit_table, nft
from tun.linux.routing import pool_routes
from tun.linux.system import Linux
from tun.reconciler import Fact
from tun.routing.address_pool import Occupied
from tun.routing.lan import Uplink
from tun.settings import EXIT_JOURNAL

ALICE, BOB = PeerId(bytes(32)), PeerId(b"\1" * 32)
WHOLE = Run(Shape(0, 0, 0), 0, 1, 1)
WEB4, WEB6 = ip_address("93.184.20.10").packed, ip_address("2606:2800:20::10").packed
INSIDE4, INSIDE6 = ip_address("10.0.0.1").packed, ip_address("fd00::1").packed


class FakeTun:
    """A device that keeps what is written. The first one of its name takes `Tun.open`'s place."""

    name = "cryprq-exit0"

    def __init__(self) -> None:
        self.written: list[tuple[bytes, Shape]] = []
        self.steps: list[str] = []
        self.addresses: list[str] = []
        self.refusal: Exception | None = None

    def open(self, name: str, **_: Any) -> FakeTun:
        self.steps.append(f"open {name}")
        return self

    async def configure(self, addresses: list[Any], **_: Any) -> tuple[Any, ...]:
        if self.refusal is not None:
            raise self.refusal
        self.addresses = [str(address) for address in addresses]
        return tuple(addresses)

    async def difference(self) -> str:
        return ""

    def start(
        self, loop: Any, on_packet: Callable[..., None], drained: Any, lost: Callable[[OSError], None]
    ) -> None:
        self.on_packet, self.on_drained, self.on_lost = on_packet, drained, lost

    def write(self, buffer: memoryview, start: int, end: int, shape: Shape) -> bool:
        self.written.append((bytes(buffer[start:end]), shape))
        return True

    def status(self) -> DeviceStatus:
        return DeviceStatus(name="cryprq-exit0")

    def close(self) -> None:
        self.steps.append("close")


class FakeLink:
    """A client's PacketLink: keeps what is sent to it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.assigned: list[tuple[bytes, bytes]] = []

    @property
    def addresses(self) -> tuple[bytes, bytes] | None:
        return self.assigned[-1] if self.assigned else None

    def assign(self, ipv4: bytes, ipv6: bytes) -> None:
        self.assigned.append((ipv4, ipv6))

    def send(self, buffer: memoryview, start: int, end: int, shape: Shape, more: bool = False) -> None:
        self.sent.append(bytes(buffer[start:end]))


class ToldToAll:
    """An event of each who listens."""

    def __init__(self) -> None:
        self.events: list[asyncio.Event] = []

    def set(self) -> None:
        for event in self.events:
            event.set()

    def is_set(self) -> bool:
        return any(event.is_set() for event in self.events)


class Stage:
    """An ExitNetwork on a fake device, in a state directory of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: Path, *, ipv6: bool = True) -> None:
        self.tun = FakeTun()
        self.state = state
        self.refusal: Exception | None = None
        self.withhold: Callable[[bool], None] = lambda withhold: None
        self.ipv6 = ipv6
        self.changed = ToldToAll()
        """Set it after a change of `ipv6`."""
        steps = self.tun.steps
        stage = self

        async def read_uplinks(own: str) -> dict[int, Uplink | None]:
            uplink = Uplink(2, "eth0", None, None)
            return {4: uplink, 6: uplink if stage.ipv6 else None}

        async def read_occupied(own: str) -> Occupied:
            return Occupied((), ())

        monkeypatch.setattr(Tun, "open", self.tun.open)
        monkeypatch.setattr(linux, "read_occupied", read_occupied)
        monkeypatch.setattr(exit_table, "warnings", lambda tun: [])
        monkeypatch.setattr(exit_kernel, "ExitFilter", self._table())
        monkeypatch.setattr(exit_kernel, "KernelSetting", self._setting())
        monkeypatch.setattr(exit_kernel, "read_uplinks", read_uplinks)
        monkeypatch.setattr(exit_kernel, "PoolRoutes", self._routes())
        monkeypatch.setattr(exit_kernel, "netlink_changes", self._told())
        monkeypatch.setitem(nft.UNDO, nft.KIND, lambda entry: steps.append(f"undo {entry['table']}"))
        monkeypatch.setitem(pool_routes.UNDO, pool_routes.KIND, lambda entry: steps.append("undo routes"))
        monkeypatch.setitem(sysctl.UNDO, sysctl.KIND, lambda entry: steps.append("undo a sysctl"))

    def _table(self) -> type[Fact]:
        stage = self

        class Table(Fact):
            name = "packet filter"

            @classmethod
            def up(cls, settings: Any, record: Callable[[Any], None], *, ipv6: bool, ours: bool) -> Table:
                if ours:
                    stage.tun.steps.append("the table is ours")
                record({"kind": nft.KIND, "table": nft.EXIT})
                stage.tun.steps.append("nat")
                if stage.refusal is not None:
                    raise stage.refusal
                return cls()

            def tell(self, withhold: Callable[[bool], None]) -> None:
                stage.withhold = withhold

            async def close(self) -> None:
                stage.tun.steps.append("deletions end")

            async def follow(self, *, ipv6: bool) -> None:
                stage.tun.steps.append(f"nat ipv6={ipv6}")

            async def look(self) -> str:
                return ""

        return Table

    def _routes(self) -> type[Fact]:
        stage = self

        class Routes(Fact):
            name = "routes to clients"

            def __init__(self, settings: Any) -> None: ...

            async def apply(self, record: Callable[[Any], None], *, ours: bool) -> None:
                if not ours:
                    record({"kind": pool_routes.KIND})
                stage.tun.steps.append("the routes are ours" if ours else "routes")

            def carry(self, *, ipv6: bool) -> None: ...

            async def look(self) -> str:
                return ""

        return Routes

    def _setting(self) -> type[Fact]:
        stage = self

        class Setting(Fact):
            def __init__(self, name: str, value: str, record: Callable[[Any], None]) -> None:
                self.name, self.value = name, value

            def keep(self, *settings: str) -> None:
                stage.tun.steps += [f"{setting}={self.value}" for setting in settings]

            async def look(self) -> str:
                return ""

        return Setting

    def _told(self) -> type[object]:
        stage = self

        class Told:
            def __init__(self) -> None:
                self._event = asyncio.Event()
                stage.changed.events.append(self._event)

            def __enter__(self) -> Told:
                return self

            def __exit__(self, *_: object) -> None: ...

            async def wait(self) -> None:
                await self._event.wait()
                self._event.clear()

        return Told

    async def start(self, policy: EgressPolicy | None = None) -> ExitNetwork:
        return await ExitNetwork.start(
            Linux(), exit_network_settings(state=self.state), policy or EgressPolicy()
        )

    @asynccontextmanager
    async def running(self, policy: EgressPolicy | None = None) -> AsyncIterator[Exit]:
        network = await self.start(policy)
        yield Exit(network, self.tun)
        await network.close()


class Exit:
    """A running one with a client."""

    def __init__(self, network: ExitNetwork, tun: FakeTun) -> None:
        self.network, self.tun = network, tun
        self.links: list[FakeLink] = []
        self.alice, (self.alice4, self.alice6) = self.join(ALICE)

    def join(self, peer: PeerId) -> tuple[FakeLink, tuple[bytes, bytes]]:
        link = FakeLink()
        self.links.append(link)
        self.network.join(peer, link, "laptop")  # type: ignore[arg-type]
        return link, link.assigned[-1]

    def leave(self, link: FakeLink) -> None:
        self.network.leave(link)  # type: ignore[arg-type]

    def receive(self, packet: bytes, run: Run = WHOLE, link: FakeLink | None = None) -> None:
        """A packet comes from a client, by default the first one."""
        room = memoryview(bytearray(HEADROOM) + packet)
        sender: PacketLink = link or self.alice  # type: ignore[assignment]
        self.network.received(sender, room, HEADROOM, len(room), run)

    def from_kernel(self, packet: bytes) -> None:
        room = memoryview(bytearray(HEADROOM) + packet)
        self.tun.on_packet(room, HEADROOM, len(room), WHOLE.shape)
        self.tun.on_drained()

    def counted(self) -> dict[str, int]:
        drops: dict[str, int] = self.network.status().drops
        return drops


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has one sign of life, and tests run side by side."""
    monkeypatch.setattr(leftovers, "claimed", lambda role: nullcontext())


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path / "state")


def udp(source: bytes, destination: bytes, port: int = 443, payload: bytes = b"data") -> bytes:
    inner = struct.pack(">HHHH", 40_000, port, 8 + len(payload), 0) + payload
    if len(source) == 4:
        return (
            struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(inner), 1, 0, 64, 17, 0) + source + destination + inner
        )
    return struct.pack(">IHBB", 6 << 28, len(inner), 17, 64) + source + destination + inner


# --- from a client ---


async def test_what_is_allowed_is_written(stage: Stage) -> None:
    async with stage.running() as exit:
        packets = [udp(exit.alice4, WEB4), udp(exit.alice6, WEB6), udp(exit.alice4, WEB4, 53)]
        for packet in packets:
            exit.receive(packet)
        assert [data for data, _ in stage.tun.written] == packets
        assert exit.counted() == {}
        assert exit.alice.sent == []


async def test_nothing_is_written_while_the_table_is_gone(stage: Stage) -> None:
    async with stage.running() as exit:
        packet = udp(exit.alice4, WEB4)
        for withhold in (False, True, True, False):
            stage.withhold(withhold)
            exit.receive(packet)
        assert [data for data, _ in stage.tun.written] == [packet] * 2
        assert exit.counted() == {"no packet filter": 2}
        assert exit.alice.sent == []


async def test_a_super_packet_is_written_in_one_piece(stage: Stage) -> None:
    async with stage.running() as exit:
        tcp = struct.pack(">HHIIBBHHH", 40_000, 443, 1, 1, 5 << 4, 0x10, 9, 0, 0)
        payload = bytes(2_500)
        head = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), 1, 0, 64, 6, 0)
        shape = Shape(TCP4 | NEEDS_CSUM, 1000, 40)
        exit.receive(head + exit.alice4 + WEB4 + tcp + payload, Run(shape, 0, 3, 3))
        assert [(len(data), shape) for data, shape in stage.tun.written] == [(2_540, shape)]
        exit.receive(head + exit.alice4 + WEB4 + tcp + payload[:700], Run(shape, 0, 3, 3))
        assert exit.counted() == {Drop.LENGTH.value: 1}


@pytest.mark.parametrize("version", [4, 6])
async def test_a_source_that_is_not_the_clients_own_is_dropped(stage: Stage, version: int) -> None:
    async with stage.running() as exit:
        bob, bobs = exit.join(BOB)
        own = exit.alice4 if version == 4 else exit.alice6
        destination = WEB4 if version == 4 else WEB6
        for source in (bobs[version == 6], bytes(len(own)), destination, own[:-1] + bytes([own[-1] ^ 1])):
            exit.receive(udp(source, destination))
        exit.receive(udp(own, destination), link=bob)
        assert stage.tun.written == []
        assert exit.counted() == {"source is not the client's": 5}
        # A spoofer is not answered: the answer would go to somebody else's address.
        assert exit.alice.sent == bob.sent == []
        exit.receive(udp(bobs[version == 6], destination), link=bob)
        assert len(stage.tun.written) == 1


async def test_without_ipv6_nothing_of_it_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = Stage(monkeypatch, tmp_path / "state", ipv6=False)
    async with stage.running() as exit:
        assert exit.alice6 == bytes(16)
        exit.receive(udp(exit.alice6, WEB6))
        assert stage.tun.written == []
        assert exit.counted() == {"source is not the client's": 1}
        assert not exit.network.status().ipv6
        assert stage.tun.addresses == ["198.18.0.1/16"]


@pytest.mark.parametrize(
    ("packet", "drop"),
    [
        (b"", Drop.SHORT),
        (b"\x45", Drop.SHORT),
        (bytes(40), Drop.VERSION),
        (udp(bytes(4), WEB4)[:-1], Drop.LENGTH),
        (udp(bytes(4), WEB4) + b"x", Drop.LENGTH),
        (b"\x44" + udp(bytes(4), WEB4)[1:], Drop.HEADER),
        (udp(bytes(16), WEB6)[:-1], Drop.LENGTH),
    ],
)
async def test_malformed_packets_are_counted(stage: Stage, packet: bytes, drop: Drop) -> None:
    async with stage.running() as exit:
        exit.receive(packet)
        assert (stage.tun.written, exit.counted()) == ([], {drop.value: 1})


async def test_slices_of_a_plain_packet_are_not_taken_for_it(stage: Stage) -> None:
    async with stage.running() as exit:
        exit.receive(udp(exit.alice4, WEB4), Run(WHOLE.shape, 0, 1, 2))
        assert (stage.tun.written, exit.counted()) == ([], {Drop.PARTIAL.value: 1})


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("policy", [EgressPolicy(), EgressPolicy(allow_private=True)])
async def test_the_tunnels_own_addresses(stage: Stage, isolate: bool, policy: EgressPolicy) -> None:
    """Whatever policy and kernel's filter allow: services of the exit never, other clients only without isolation."""
    network = await ExitNetwork.start(
        Linux(), exit_network_settings(state=stage.state, isolate=isolate), policy
    )
    exit = Exit(network, stage.tun)
    settings = network._settings
    _, bob = exit.join(BOB)
    exits = [
        address.packed
        for pool in (settings.pool4, settings.pool6)
        for address in (pool[0], pool[1], pool[-1])
    ]
    for destination in (*exits, *bob):
        exit.receive(udp(exit.alice4 if len(destination) == 4 else exit.alice6, destination))
    assert len(stage.tun.written) == (0 if isolate else 2)
    await network.close()


@pytest.mark.parametrize("version", [4, 6])
async def test_the_exit_is_reached_by_a_ping_only(stage: Stage, version: int) -> None:
    async with stage.running() as exit:
        own = exit.network._own[version]
        source, protocol = (exit.alice4, 1) if version == 4 else (exit.alice6, 58)
        echo, reply, unreachable = (8, 0, 3) if version == 4 else (128, 129, 1)
        passing = [datagram(source, own, protocol, bytes([kind]) + bytes(9)) for kind in (echo, reply)]
        later = bytearray(datagram(source, own, protocol, bytes([unreachable]) + bytes(9)))
        if version == 4:
            later[6:8] = (185).to_bytes(2)
            passing.append(bytes(later))
        for packet in (*passing, datagram(source, own, protocol, bytes([unreachable]) + bytes(9))):
            exit.receive(packet)
        exit.receive(datagram(source, own, 47, bytes([echo]) + bytes(9)))
        assert [data for data, _ in stage.tun.written] == passing
        assert exit.counted() == {"forbidden by the policy": 2}


@pytest.mark.parametrize(("version", "destination"), [(4, INSIDE4), (6, INSIDE6), (4, bytes([127, 0, 0, 1]))])
async def test_what_the_policy_forbids_is_answered(stage: Stage, version: int, destination: bytes) -> None:
    async with stage.running() as exit:
        own, exits = (exit.alice4, "198.18.0.1") if version == 4 else (exit.alice6, "fd63:7279:7071::1")
        exit.receive(udp(own, destination))
        assert (stage.tun.written, exit.counted()) == ([], {"forbidden by the policy": 1})
        (answer,) = exit.alice.sent
        seen = parse(answer, 0, len(answer))
        assert not isinstance(seen, Drop)
        assert (seen.source, seen.destination) == (ip_address(exits).packed, own)
        assert tuple(answer[seen.transport : seen.transport + 2]) == ((3, 13) if version == 4 else (1, 1))
        assert udp(own, destination)[:28] in answer


async def test_answers_are_limited_in_rate(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage.running() as exit:
        time = [1e6]
        with monkeypatch.context() as patched:
            patched.setattr("asyncio.get_running_loop", lambda: _Clock(time))
            for _ in range(1000):
                exit.receive(udp(exit.alice4, INSIDE4))
            assert len(exit.alice.sent) == ANSWERS
            assert exit.counted() == {"forbidden by the policy": 1000}
            time[0] += 0.5
            for _ in range(1000):
                exit.receive(udp(exit.alice4, INSIDE4))
            assert len(exit.alice.sent) == ANSWERS * 1.5


class _Clock:
    def __init__(self, now: list[float]) -> None:
        self._now = now

    def time(self) -> float:
        return self._now[0]


async def test_ports_are_judged_too(stage: Stage) -> None:
    async with stage.running(EgressPolicy(deny=(":25",))) as exit:
        exit.receive(udp(exit.alice4, WEB4, 25))
        exit.receive(udp(exit.alice4, WEB4, 26))
        assert [data[22:24] for data, _ in stage.tun.written] == [(26).to_bytes(2)]


async def test_what_the_policy_said_is_remembered_until_it_changes(stage: Stage) -> None:
    policy = EgressPolicy()
    asked: list[tuple[str, int]] = []
    check = policy.check_address

    def counting(ip: str, port: int, name: str | None = None) -> bool:
        asked.append((ip, port))
        return check(ip, port, name)

    policy.check_address = counting  # type: ignore[method-assign]
    async with stage.running(policy) as exit:
        for _ in range(3):
            exit.receive(udp(exit.alice4, WEB4))
        assert asked == [("93.184.20.10", 443)]
        policy.update_own_addresses(["93.184.20.10"])
        exit.network.policy_changed()
        exit.receive(udp(exit.alice4, WEB4))
        assert len(asked) == 2
        assert exit.counted() == {"forbidden by the policy": 1}


async def test_the_verdicts_that_are_remembered_are_bounded(stage: Stage) -> None:
    async with stage.running() as exit:
        for port in range(VERDICTS + 10):
            exit.receive(udp(exit.alice4, WEB4, port))
        assert len(exit.network._verdicts) == VERDICTS


async def test_what_has_no_port_is_judged_by_its_address(stage: Stage) -> None:
    def ping(source: bytes, destination: bytes) -> bytes:
        inner = b"\x08\0\xf7\xff" + bytes(4)
        return struct.pack(">BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 1, 0) + source + destination + inner

    async with stage.running() as exit:
        exit.receive(ping(exit.alice4, WEB4))
        exit.receive(ping(exit.alice4, INSIDE4))
        assert len(stage.tun.written) == 1
        assert exit.counted() == {"forbidden by the policy": 1}


# --- to a client ---


async def test_the_kernels_packets_go_to_whose_address_it_is(stage: Stage) -> None:
    async with stage.running() as exit:
        bob, (bob4, bob6) = exit.join(BOB)
        for packet in (udp(WEB4, exit.alice4), udp(WEB6, exit.alice6), udp(WEB4, bob4), udp(WEB6, bob6)):
            exit.from_kernel(packet)
        exit.from_kernel(udp(WEB4, bytes([198, 18, 0, 1])))
        assert exit.alice.sent == [udp(WEB4, exit.alice4), udp(WEB6, exit.alice6)]
        assert bob.sent == [udp(WEB4, bob4), udp(WEB6, bob6)]
        assert exit.counted() == {"for no client": 1}


async def test_a_new_session_of_the_same_peer_takes_the_address_over(stage: Stage) -> None:
    async with stage.running() as exit:
        again, addresses = exit.join(ALICE)
        assert addresses == (exit.alice4, exit.alice6)
        packet = udp(WEB4, exit.alice4)
        exit.from_kernel(packet)
        assert (exit.alice.sent, again.sent) == ([], [packet])
        exit.receive(udp(exit.alice4, WEB4))  # what the old one still has under way
        assert len(stage.tun.written) == 1
        exit.leave(exit.alice)
        exit.from_kernel(packet)
        assert len(again.sent) == 2
        exit.leave(again)
        exit.from_kernel(packet)
        assert exit.counted() == {"for no client": 1}
        assert exit.network.status().clients == 0


async def test_the_older_session_gets_the_address_back(stage: Stage) -> None:
    async with stage.running() as exit:
        again, _ = exit.join(ALICE)
        exit.leave(again)
        exit.leave(again)
        exit.from_kernel(udp(WEB4, exit.alice4))
        exit.from_kernel(udp(WEB6, exit.alice6))
        assert len(exit.alice.sent) == 2


async def test_who_has_left_sends_nothing(stage: Stage) -> None:
    async with stage.running() as exit:
        exit.leave(exit.alice)
        exit.receive(udp(exit.alice4, WEB4))
        assert (stage.tun.written, exit.counted()) == ([], {"source is not the client's": 1})


@given(st.binary(max_size=100), st.sampled_from([None, 4, 6]), st.integers(0, 9), st.integers(0, 70_000))
async def test_whatever_comes_is_written_counted_or_answered(
    noise: bytes, version: int | None, flags: int, segment: int
) -> None:
    """Nothing that a client sends raises, and nothing leaves from another address than its own."""
    tun: Any = FakeTun()
    settings = exit_network_settings(state=Path("/nowhere"))
    kernel: Any = FakeKernel()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exit_network, "Reconciler", FakeReconciler)
        network = ExitNetwork(Linux(), settings, EgressPolicy(), tun, kernel, AsyncExitStack())
    exit = Exit(network, tun)
    packet = noise
    if version is not None:
        packet = udp(*((exit.alice4, WEB4) if version == 4 else (exit.alice6, WEB6)), payload=noise)
    exit.receive(packet, Run(Shape(flags, segment, segment), 0, 1, 1))
    assert len(tun.written) + sum(network.drops.values()) == 1
    for data, _ in tun.written:
        seen = parse(data, 0, len(data))
        assert not isinstance(seen, Drop)
        assert seen.source in (exit.alice4, exit.alice6)
    await network.release()


class FakeReconciler:
    def __init__(self, facts: list[Fact]) -> None: ...

    async def stop(self) -> None: ...


class FakeKernel:
    """An ExitKernel with nothing to look after."""

    ipv6 = True

    def facts(self) -> list[Fact]:
        return []

    def tell_of_table(self, withhold: Callable[[bool], None]) -> None:
        """It stands."""

    async def close(self) -> None:
        """Nothing works on it."""

    async def follow_uplinks(self, tell: Callable[[], None]) -> None:
        """Nothing changes."""


# --- addresses that a client cannot take ---


async def test_another_address_for_a_client_that_cannot_take_the_first(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage.running() as exit:
        again, _ = exit.join(ALICE)
        link: Any = again
        lan = ip_network(exit.alice4)
        exit.network.avoid(link, (lan,))
        other4, other6 = again.assigned[-1]
        assert other4 != exit.alice4 and other6 == exit.alice6
        exit.from_kernel(udp(WEB4, exit.alice4))
        exit.from_kernel(udp(WEB4, other4))
        assert (len(exit.alice.sent), len(again.sent)) == (1, 1)
        exit.receive(udp(exit.alice4, WEB4), link=again)
        exit.receive(udp(other4, WEB4), link=again)
        assert [data for data, _ in stage.tun.written] == [udp(other4, WEB4)]
        for _ in range(3):
            exit.network.avoid(link, (exit.network._pool4.network,))
            assert again.assigned[-1] == (bytes(4), bytes(16))
        assert caplog.text.count("gets no packets") == 1, "a client cannot fill the log"
        exit.receive(udp(other4, WEB4), link=again)
        assert len(stage.tun.written) == 1
        exit.leave(again)
        exit.network.avoid(link, (lan,))


# --- IPv6 comes and goes ---


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_uplinks_are_followed_where_the_kernel_tells_no_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(monkeypatch, tmp_path / "state", ipv6=False)

    def refused() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(exit_kernel, "netlink_changes", refused)
    monkeypatch.setattr(exit_kernel, "POLL_SECONDS", 0.01)
    async with stage.running() as exit:
        await until(lambda: "the kernel tells no changes" in caplog.text)
        assert exit.alice.assigned == [(exit.alice4, bytes(16))]
        stage.ipv6 = True
        await until(lambda: len(exit.alice.assigned) == 2)


async def test_ipv6_that_comes_later_is_handed_out_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(monkeypatch, tmp_path / "state", ipv6=False)
    monkeypatch.setattr(exit_kernel, "LOSS_SECONDS", 0.2)
    async with stage.running() as exit:
        bob, _ = exit.join(BOB)
        assert exit.alice.assigned == [(exit.alice4, bytes(16))]
        stage.ipv6 = True
        stage.changed.set()
        await until(lambda: len(bob.assigned) == 2)
        alice4, alice6 = exit.alice.assigned[-1]
        assert alice4 == exit.alice4 and any(alice6)
        assert len(stage.tun.addresses) == 2 and exit.network.status().ipv6
        assert "net.ipv6.conf.all.forwarding=1" in stage.tun.steps
        exit.receive(udp(alice6, WEB6))
        exit.from_kernel(udp(WEB6, alice6))
        assert (len(stage.tun.written), len(exit.alice.sent)) == (1, 1)
        stage.ipv6 = False
        stage.changed.set()
        await until(lambda: len(bob.assigned) == 3)
        assert exit.alice.assigned[-1] == (exit.alice4, bytes(16))
        assert [step for step in stage.tun.steps if "nat ipv6" in step] == ["nat ipv6=True", "nat ipv6=False"]
        exit.receive(udp(alice6, WEB6))
        exit.from_kernel(udp(WEB6, alice6))
        assert (len(stage.tun.written), len(exit.alice.sent)) == (1, 1)


async def test_a_short_loss_of_ipv6_changes_nothing(stage: Stage) -> None:
    async with stage.running() as exit:
        for there in (False, True, False):
            stage.ipv6 = there
            stage.changed.set()
            await until(lambda: not stage.changed.is_set())
        assert len(exit.alice.assigned) == 1 and exit.network.status().ipv6


# --- start and end ---


async def test_all_is_set_up_and_undone_in_reverse(stage: Stage) -> None:
    network = await stage.start()
    status = network.status()
    assert status == TunNetworkStatus(
        device=DeviceStatus(name="cryprq-exit0"), ipv6=True, repairs=status.repairs
    )
    assert {"packet filter", "device", "IPv4 forwarding", "IPv6 forwarding"} <= {
        repair.name for repair in status.repairs
    }
    assert stage.tun.addresses == ["198.18.0.1/16", "fd63:7279:7071::1/64"]
    made = list(stage.tun.steps)
    order = ("open cryprq-exit0", "nat", "routes", "net.ipv4.ip_forward=1")
    assert sorted(order, key=made.index) == list(order)
    assert "net.ipv4.conf.cryprq-exit0.forwarding=1" in made and "net.ipv4.conf.eth0.forwarding=1" in made
    assert made.index("net.ipv6.conf.eth0.accept_ra=2") < made.index("net.ipv6.conf.all.forwarding=1")
    with pytest.raises(ConfigError):
        Journal(stage.state / EXIT_JOURNAL)
    await network.close()
    assert stage.tun.steps[len(made) :] == ["deletions end", "close", "undo routes", f"undo {nft.EXIT}"]
    assert list(stage.state.glob(EXIT_JOURNAL)) == []


async def test_a_release_leaves_what_keeps_connections_until_the_end(stage: Stage) -> None:
    """The case that was: the kernel answered for the connections of clients, with resets, while there was no exit."""
    network = await stage.start()
    made = list(stage.tun.steps)
    await network.release()
    assert stage.tun.steps[len(made) :] == ["deletions end", "close"]
    with Journal(stage.state / EXIT_JOURNAL) as journal:
        assert {entry["kind"] for entry in journal.entries()} >= {nft.KIND, pool_routes.KIND}
    await network.close()
    assert stage.tun.steps[len(made) + 2 :] == ["undo routes", f"undo {nft.EXIT}"]


@pytest.mark.parametrize("lives", [[7], [None, 7]], ids=["before", "just now"])
async def test_what_a_successor_has_taken_over_is_left_to_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, lives: list[int | None]
) -> None:
    network = await stage.start()
    await network.release()
    steps = list(stage.tun.steps)
    monkeypatch.setattr(leftovers, "holder", lambda role: lives.pop(0))
    with Journal(stage.state / EXIT_JOURNAL):
        await network.close()
    assert stage.tun.steps == steps and not lives


async def test_a_journal_that_nobody_living_has_is_an_error(stage: Stage) -> None:
    network = await stage.start()
    await network.release()
    with Journal(stage.state / EXIT_JOURNAL), pytest.raises(ConfigError):
        await network.close()


async def test_a_successor_is_waited_for_where_clients_have_packets(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int | None] = [None, None, 7]
    monkeypatch.setattr(exit_network, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(leftovers, "holder", lambda role: looks.pop(0))
    network = await stage.start()
    await network.release()
    await network.succeeded()
    assert len(looks) == 3, "nobody was there"
    network = await stage.start()
    exit = Exit(network, stage.tun)
    network.leave(exit.alice)  # type: ignore[arg-type]
    await network.release()
    await network.succeeded()
    assert not looks
    monkeypatch.setattr(leftovers, "holder", lambda role: None)
    monkeypatch.setattr(exit_network, "SUCCESSOR_SECONDS", 0.01)
    await network.succeeded()
    await network.close()


@pytest.mark.parametrize("where", ["nat", "device"])
async def test_a_failure_in_the_middle_undoes_what_was_done(stage: Stage, where: str) -> None:
    refusal = ConfigError("no")
    if where == "nat":
        stage.refusal = refusal
    else:
        stage.tun.refusal = refusal
    with pytest.raises(ConfigError, match="no"):
        await stage.start()
    undone = stage.tun.steps[stage.tun.steps.index("close") + 1 :]
    assert undone == ([] if where == "nat" else ["undo routes"]) + [f"undo {nft.EXIT}"]
    with Journal(stage.state / EXIT_JOURNAL) as journal:  # free again, and empty
        assert journal.entries() == []


async def test_what_a_killed_exit_left_is_undone_first_but_for_table_and_routes(stage: Stage) -> None:
    with Journal(stage.state / EXIT_JOURNAL) as journal:
        journal.record({"kind": nft.KIND, "table": nft.EXIT})
        journal.record({"kind": pool_routes.KIND})
        journal.record({"kind": sysctl.KIND})
    async with stage.running():
        steps = ["undo a sysctl", "open cryprq-exit0", "the table is ours", "nat", "the routes are ours"]
        assert stage.tun.steps[:5] == steps
    assert stage.tun.steps[-1] == f"undo {nft.EXIT}"


async def test_a_device_that_goes_ends_the_exit_with_a_sentence(stage: Stage) -> None:
    async with stage.running() as exit:
        waiting = asyncio.ensure_future(exit.network.lost())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        stage.tun.on_lost(OSError(77, "File descriptor in bad state"))
        with pytest.raises(CryprqError, match=r"removed the device cryprq-exit0 .*; start the exit again"):
            await exit.network.lost()
