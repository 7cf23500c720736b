"""Which kind an address is."""

from __future__ import annotations

import pytest

from cryprq_proxy.base.address_kinds import AddressKind, kind_of

KINDS = {
    AddressKind.GLOBAL: ["8.8.8.8", "192.0.0.9", "100.128.0.1", "172.32.0.1", "2606:4700::1", "2a00::1"],
    AddressKind.LOOPBACK: ["127.0.0.1", "127.255.255.255", "::1"],
    AddressKind.LINK_LOCAL: ["169.254.0.1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "febf::1"],
    AddressKind.PRIVATE: [
        *("10.0.0.1", "100.64.0.1", "100.127.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
        *("fc00::1", "fdff::1", "fec0::1", "feff::1"),
    ],
    AddressKind.SPECIAL: ["192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.7", "2001:db8::1"],
    AddressKind.NO_HOST: [
        *("0.0.0.0", "0.255.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::2", "::127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::1", "ff02::1"),
        *("100::1", "::ffff:127.0.0.1", "2001::1", "2002:808:808::1", "4000::1", "8000::1", "f000::1"),
    ],
}


@pytest.mark.parametrize(("kind", "host"), [(kind, host) for kind, hosts in KINDS.items() for host in hosts])
def test_kinds(kind: AddressKind, host: str) -> None:
    assert kind_of(host) is kind


@pytest.mark.parametrize("text", ["", "exit.example", "127.1", "[::1]", "10.0.0.1%eth0"])
def test_other_text_has_none(text: str) -> None:
    with pytest.raises(ValueError):
        kind_of(text)
