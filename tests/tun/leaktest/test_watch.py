"""What a leak test recognises and concludes, from packets made by hand."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from tests.support.canary_packets import TARGETS, of, packet
from tun.device.packets import ICMP6, TCP, UDP
from tun.leaktest.canaries import Canary, CanaryTargets, canaries
from tun.leaktest.report import CanaryVerdict, render
from tun.leaktest.watch import MAX_INTERFACES, MAX_OTHERS, Watch

EXIT = ("198.51.100.9", 4433)


def watch(sent: Sequence[Canary], **more: object) -> Watch:
    return Watch(sent, tunnel="cryprq0", exits=[EXIT], **more)  # type: ignore[arg-type]


def verdicts(watching: Watch) -> list[CanaryVerdict]:
    return [row.verdict for row in watching.report().rows]


@pytest.mark.parametrize("canary", canaries(TARGETS), ids=lambda canary: f"{canary.name} {canary.address}")
def test_verdicts_of_one_canary(canary: Canary) -> None:
    watching = watch([canary])
    assert verdicts(watching) == [CanaryVerdict.BLOCKED]
    watching.answered(0)
    assert verdicts(watching) == [CanaryVerdict.HERE]
    watching.frame("cryprq0", of(canary))
    assert verdicts(watching) == [CanaryVerdict.TUNNELLED]
    assert watching.report().exit_code == 0
    watching.frame("eth0", of(canary))
    assert verdicts(watching) == [CanaryVerdict.LEAKED]
    report = watching.report()
    assert report.exit_code == 1
    assert report.rows[0].seen == "eth0 x1, cryprq0 x1, answered"
    assert (report.link, report.other_packets) == (0, 0)


def test_a_packet_without_payload_is_known_by_its_flow() -> None:
    sent = canaries(CanaryTargets(dns=(), hosts=("192.0.2.1", "2001:db8::1")))
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
    (canary, *_) = sent = canaries(CanaryTargets(dns=("192.0.2.53",), hosts=()))
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
    sent = canaries(CanaryTargets(dns=(), hosts=("192.0.2.1", "203.0.113.1", "2001:db8::1")))
    watching = watch(
        sent, allowed=[ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32")]
    )
    for canary in sent:
        watching.frame("eth0", of(canary))
    report = watching.report()
    assert {row.verdict for row in report.rows if "192.0.2.1" in row.target or "db8" in row.target} == {
        CanaryVerdict.ALLOWED
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
        packet(ICMP6, "ff02::1", 0),
        packet(ICMP6, "fe80::1", 0),
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
    assert len(report.others) == MAX_OTHERS
    assert report.others[0] == ("eth0", "TCP to 203.0.113.0:22", 2)
    assert report.exit_code == 0


def test_interfaces_are_bounded_and_none_is_overlooked() -> None:
    (canary, *_) = sent = canaries(TARGETS)
    watching = watch(sent)
    for number in range(MAX_INTERFACES + 10):
        watching.frame(f"veth{number}", of(canary))
    assert "more x10" in watching.report().leaks[0].seen
    watching.frame("cryprq0", of(canary))
    assert "cryprq0 x1" in watching.report().leaks[0].seen


def test_render() -> None:
    sent = canaries(CanaryTargets(dns=("192.0.2.53",), hosts=()))
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
