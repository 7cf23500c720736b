"""What a leak test recognises and concludes, from packets made by hand; on real interfaces in tests/lab."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from pathlib import Path

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tun.leaktest import canaries as leaktest
from tun.leaktest import probe as leakprobe
from tun.leaktest.canaries import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Canary,
    Targets,
    Verdict,
    Watch,
    canaries,
    parse_packet,
    render,
)

TARGETS = Targets(dns=("192.0.2.53",), hosts=("192.0.2.1", "2001:db8::1"), domain="example.org")
EXIT = ("198.51.100.9", 4433)


def transport(protocol: int, source_port: int, port: int, payload: bytes) -> bytes:
    if protocol == TCP:
        return struct.pack("!HHIIBBHHH", source_port, port, 0, 0, 5 << 4, 2, 0, 0, 0) + payload
    if protocol == UDP:
        return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload
    kind = 8 if protocol == ICMP else 128
    return bytes([kind]) + bytes(7) + payload


def packet(protocol: int, address: str, port: int, payload: bytes = b"", source_port: int = 40000) -> bytes:
    """An IP packet to `address`, from somewhere."""
    inner = transport(protocol, source_port, port, payload)
    to = ipaddress.ip_address(address)
    if to.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0, 64, protocol, 0)
        return head + bytes(4) + to.packed + inner
    return struct.pack("!IHBB", 6 << 28, len(inner), protocol, 64) + bytes(16) + to.packed + inner


def of(canary: Canary, source_port: int = 40000) -> bytes:
    return packet(canary.protocol, canary.address, canary.port, canary.payload, source_port)


def watch(sent: Sequence[Canary], **more: object) -> Watch:
    return Watch(sent, tunnel="cryprq0", exits=[EXIT], **more)  # type: ignore[arg-type]


def verdicts(watching: Watch) -> list[Verdict]:
    return [row.verdict for row in watching.report().rows]


# Canaries


def test_each_canary_is_its_own() -> None:
    made = canaries(TARGETS)
    kinds = {(canary.name, canary.protocol, canary.address, canary.port) for canary in made}
    assert kinds == {
        ("DNS over UDP", UDP, "192.0.2.53", 53),
        ("DNS over TCP", TCP, "192.0.2.53", 53),
        ("DNS over TLS", TCP, "192.0.2.53", 853),
        *(("TCP", TCP, address, 443) for address in TARGETS.hosts),
        *(("QUIC", UDP, address, 443) for address in TARGETS.hosts),
        *(("STUN", UDP, address, 3478) for address in TARGETS.hosts),
        ("ping", ICMP, "192.0.2.1", 0),
        ("ping", ICMPV6, "2001:db8::1", 0),
    }
    assert len({canary.token for canary in made}) == len(made)
    for canary in made:
        assert list(leaktest.find_tokens(canary.payload)) == [canary.token]
        assert len(canary.token) == leaktest.TOKEN_SIZE
        assert len(of(canary)) < leakprobe.SNAP


def test_dns_canaries_are_questions() -> None:
    over_udp, over_tcp, _ = canaries(Targets(dns=("192.0.2.53",), hosts=(), domain="example.org"))
    assert len(over_tcp.payload) == 2 + int.from_bytes(over_tcp.payload[:2])
    for wire, token in ((over_udp.payload, over_udp.token), (over_tcp.payload[2:], over_tcp.token)):
        question = dns.message.from_wire(wire).question[0]
        assert question.name.to_text() == f"{token.decode()}.example.org."


def test_canaries_bound_to_interfaces() -> None:
    made = canaries(Targets(dns=(), hosts=("192.0.2.1",), devices=("eth0", "wlan0")))
    assert [canary.device for canary in made] == [""] * 4 + ["eth0"] * 4 + ["wlan0"] * 4
    assert made[4].target == "192.0.2.1:443 on eth0"


# Verdicts


@pytest.mark.parametrize("canary", canaries(TARGETS), ids=lambda canary: f"{canary.name} {canary.address}")
def test_verdicts_of_one_canary(canary: Canary) -> None:
    watching = watch([canary])
    assert verdicts(watching) == [Verdict.BLOCKED]
    watching.answered(0)
    assert verdicts(watching) == [Verdict.HERE]
    watching.frame("cryprq0", of(canary))
    assert verdicts(watching) == [Verdict.TUNNELLED]
    assert watching.report().exit_code == 0
    watching.frame("eth0", of(canary))
    assert verdicts(watching) == [Verdict.LEAKED]
    report = watching.report()
    assert report.exit_code == 1
    assert report.rows[0].seen == "eth0 x1, cryprq0 x1, answered"
    assert (report.link, report.other_packets) == (0, 0)


def test_a_packet_without_payload_is_known_by_its_flow() -> None:
    sent = canaries(Targets(dns=(), hosts=("192.0.2.1", "2001:db8::1")))
    syn = next(number for number, canary in enumerate(sent) if canary.name == "TCP")
    watching = watch(sent)
    watching.launched(syn, 40123)
    watching.frame("eth0", packet(TCP, "192.0.2.1", 443, source_port=40122))
    watching.frame("eth0", packet(UDP, "192.0.2.1", 443, source_port=40123))
    watching.frame("eth0", packet(TCP, "192.0.2.2", 443, source_port=40123))
    assert watching.report().leaks == ()
    watching.frame("eth0", packet(TCP, "192.0.2.1", 443, source_port=40123))
    assert [row.target for row in watching.report().leaks] == ["192.0.2.1:443"]


def test_a_question_that_was_sent_on_is_a_leak() -> None:
    """To another server, with the case mixed, inside of something else."""
    (canary, *_) = sent = canaries(Targets(dns=("192.0.2.53",), hosts=()))
    for moved in (
        packet(UDP, "203.0.113.1", 53, canary.payload),
        packet(UDP, "203.0.113.1", 53, canary.payload.upper()),
        packet(TCP, "2001:db8::9", 8080, b"x" * 50 + canary.payload),
        packet(99, "203.0.113.1", 0, canary.payload),
    ):
        watching = watch(sent)
        watching.frame("eth0", moved)
        assert [row.name for row in watching.report().leaks] == ["DNS over UDP"]


def test_a_canary_in_the_link_itself_is_a_leak() -> None:
    """What goes to the exit is encrypted, so a readable canary there did not come from the tunnel."""
    (canary, *_) = sent = canaries(TARGETS)
    watching = watch(sent)
    watching.frame("eth0", packet(UDP, *EXIT, canary.payload))
    assert len(watching.report().leaks) == 1


def test_what_settings_let_out_is_no_leak() -> None:
    sent = canaries(Targets(dns=(), hosts=("192.0.2.1", "203.0.113.1", "2001:db8::1")))
    watching = watch(
        sent, allowed=[ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32")]
    )
    for canary in sent:
        watching.frame("eth0", of(canary))
    report = watching.report()
    assert {row.verdict for row in report.rows if "192.0.2.1" in row.target or "db8" in row.target} == {
        Verdict.ALLOWED
    }
    assert {row.target.partition(":")[0] for row in report.leaks} == {"203.0.113.1"}


def test_what_else_leaves() -> None:
    watching = watch(canaries(TARGETS))
    watching.frame("eth0", packet(UDP, *EXIT, b"sealed"))
    watching.frame("eth0", packet(TCP, *EXIT))
    for expected in (
        packet(UDP, "255.255.255.255", 67),
        packet(UDP, "224.0.0.251", 5353),
        packet(UDP, "10.0.0.1", 67),
        packet(ICMPV6, "ff02::1", 0),
        packet(ICMPV6, "fe80::1", 0),
    ):
        watching.frame("eth0", expected)
    watching.frame("cryprq0", packet(TCP, "203.0.113.5", 22))
    report = watching.report()
    assert (report.link, report.others, report.other_packets) == (2, (), 0)
    for number in range(40):
        watching.frame("eth0", packet(TCP, f"203.0.113.{number}", 22))
    watching.frame("wlan0", packet(UDP, EXIT[0], 53))
    watching.frame("eth0", packet(TCP, "203.0.113.0", 22))
    report = watching.report()
    assert report.other_packets == 42
    assert len(report.others) == leaktest.MAX_OTHERS
    assert report.others[0] == ("eth0", "TCP to 203.0.113.0:22", 2)
    assert report.exit_code == 0


def test_interfaces_are_bounded_and_none_is_overlooked() -> None:
    (canary, *_) = sent = canaries(TARGETS)
    watching = watch(sent)
    for number in range(leaktest.MAX_INTERFACES + 10):
        watching.frame(f"veth{number}", of(canary))
    assert "more x10" in watching.report().leaks[0].seen
    watching.frame("cryprq0", of(canary))
    assert "cryprq0 x1" in watching.report().leaks[0].seen


# The table


def test_render() -> None:
    sent = canaries(Targets(dns=("192.0.2.53",), hosts=()))
    watching = watch(sent)
    watching.frame("cryprq0", of(sent[0]))
    watching.trouble(1, "refused by the filter")
    good = render(watching.report(counters={"eth0": 12, "cryprq0": 3}))
    assert good.splitlines() == [
        "canary        target          verdict    seen",
        "DNS over UDP  192.0.2.53:53   tunnelled  cryprq0 x1",
        "DNS over TCP  192.0.2.53:53   blocked    refused by the filter",
        "DNS over TLS  192.0.2.53:853  blocked",
        "",
        "packets that left meanwhile: cryprq0 3, eth0 12; 0 of them seen to be the link",
        "no leak: 1 tunnelled, 2 blocked",
    ]
    watching.frame("eth0", of(sent[2]))
    assert render(watching.report()).splitlines()[-1] == "LEAK: 1 tunnelled, 1 blocked, 1 LEAKED"


def test_a_capture_with_losses_proves_nothing() -> None:
    report = watch(canaries(TARGETS)).report(missed=3)
    assert report.exit_code == 1
    assert "nothing proved: the capture lost 3 packets" in render(report)


# The parser


def test_ipv4_options_and_fragments() -> None:
    plain = packet(UDP, "192.0.2.1", 53, b"payload", 1234)
    seen = parse_packet(plain)
    assert seen == (UDP, bytes([192, 0, 2, 1]), 1234, 53)
    optioned = bytes([0x47]) + plain[1:20] + bytes(8) + plain[20:]
    assert parse_packet(optioned) == seen
    later = plain[:6] + b"\x00\x10" + plain[8:]
    assert parse_packet(later) == (UDP, bytes([192, 0, 2, 1]), 0, 0)


def test_ipv6_extension_headers() -> None:
    plain = packet(TCP, "2001:db8::1", 443, b"payload", 1234)
    seen = parse_packet(plain)
    assert seen is not None
    assert seen[2:] == (1234, 443)

    def extended(*headers: tuple[int, bytes]) -> bytes:
        """Each header: its number, and its bytes behind the next header's number."""
        numbers = [number for number, _ in headers] + [TCP]
        chain = b"".join(
            bytes([following]) + body for following, (_, body) in zip(numbers[1:], headers, strict=True)
        )
        return plain[:6] + bytes([numbers[0]]) + plain[7:40] + chain + plain[40:]

    assert parse_packet(extended((0, bytes(7)), (60, b"\x01" + bytes(14)), (44, bytes(7)))) == seen
    later = parse_packet(extended((44, b"\x00\x00\x10\x00\x00\x00\x00")))
    assert later is not None
    assert later[2:] == (0, 0)
    endless = parse_packet(extended(*[(0, bytes(7))] * 20))
    assert endless is not None
    assert endless.port == 0


@pytest.mark.parametrize("canary", canaries(TARGETS), ids=lambda canary: f"{canary.name} {canary.address}")
def test_cut_packets(canary: Canary) -> None:
    """Cut anywhere, a packet is what it was, or nothing."""
    whole = of(canary)
    seen = parse_packet(whole)
    assert seen is not None
    ports = (20 if seen.protocol == ICMP or len(seen.destination) == 4 else 40) + 4
    for end in range(len(whole)):
        assert parse_packet(whole[:end]) == (None if end < ports else seen)


@given(
    st.sampled_from(
        [b"", b"\x45" + bytes(5) + b"\x00\x00\x40\x06", b"\x4f", b"\x60" + bytes(5) + b"\x2c", b"\x60"]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_are_a_packet_or_none(head: bytes, tail: bytes) -> None:
    (canary, *_) = sent = canaries(TARGETS)
    data = head + tail
    seen = parse_packet(data)
    if seen is not None:
        assert len(seen.destination) in (4, 16)
    watching = watch(sent)
    watching.frame("eth0", data)
    assert watching.report().other_packets <= 1
    watching.frame("eth0", data + canary.token)
    report = watching.report()
    assert len(report.leaks) == 1
    render(report)


# The counters


def test_packets_sent(tmp_path: Path) -> None:
    file = tmp_path / "dev"
    file.write_text(
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "    lo:  100 1 0 0 0 0 0 0 200 2 0 0 0 0 0 0\n"
        "eth0:1:  100 1 0 0 0 0 0 0 200 7 0 0 0 0 0 0\n"
        "broken: 1 2\n"
    )
    assert leakprobe.packets_sent(file) == {"lo": 2, "eth0:1": 7}
