"""What is read of the answers of ifconfig and netstat, as macOS 13 to 15 give them."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import CryprqError
from tun.macos.networks import (
    MacState,
    look,
    read_interfaces,
    read_routes,
    refuse_other_tunnel,
)
from tun.macos.programs import Command, ProgramAnswer

IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
	options=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
	inet 127.0.0.1 netmask 0xff000000
	inet6 ::1 prefixlen 128
	inet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
	nd6 options=201<PERFORMNUD,DAD>
gif0: flags=8010<POINTOPOINT,MULTICAST> mtu 1280
stf0: flags=0<> mtu 1280
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
	options=6460<TSO4,TSO6,CHANNEL_IO,PARTIAL_CSUM,ZEROINVERT_CSUM>
	ether a4:83:e7:12:34:56
	inet6 fe80::1c2f:11ff:fe22:3344%en0 prefixlen 64 secured scopeid 0xb
	inet 192.168.1.23 netmask 0xffffff00 broadcast 192.168.1.255
	inet6 2001:db8:1:2:1:2:3:4 prefixlen 64 autoconf secured
	inet6 2001:db8:1:2:aaaa:2:3:4 prefixlen 64 autoconf temporary
	media: autoselect
	status: active
utun3: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380
	inet6 fe80::aaaa:bbbb:cccc:dddd%utun3 prefixlen 64 scopeid 0x12
	inet 10.8.0.2 --> 10.8.0.1 netmask 0xffffffff
"""
INET = """\
Routing tables

Internet:
Destination        Gateway            Flags               Netif Expire
default            192.168.1.1        UGScg                 en0
default            link#18            UCSIg           bridge100      !
127                127.0.0.1          UCS                   lo0
127.0.0.1          127.0.0.1          UH                    lo0
128.0/1            utun8              USc                 utun8
169.254            link#11            UCS                   en0      !
192.168.1          link#11            UCS                   en0      !
192.168.1.1        a:b:c:d:e:f        UHLWIir               en0   1186
203.0.113.9        192.168.1.1        UGHS                  en0
224.0.0/4          link#11            UmCS                  en0      !
255.255.255.255/32 link#11            UCS                   en0      !
"""
INET6 = """\
Routing tables

Internet6:
Destination                             Gateway                                 Flags               Netif Expire
default                                 fe80::1%en0                             UGcg                  en0
default                                 fe80::%utun0                            UGcIg               utun0
::1                                     ::1                                     UHL                   lo0
::/1                                    ::1                                     UGRSc                 lo0
2001:db8:1:2::/64                       link#11                                 UC                    en0
fe80::%lo0/64                           fe80::1%lo0                             UcI                   lo0
fe80::%en0/64                           link#11                                 UCI                   en0
ff00::/8                                ::1                                     UmCI                  lo0
"""


def answering(ifconfig: str = IFCONFIG, inet: str = INET, inet6: str = INET6) -> MacState:
    def run(command: Command) -> ProgramAnswer:
        assert not command.changes
        if command.argv[0] == "ifconfig":
            return ProgramAnswer(ifconfig)
        return ProgramAnswer(inet if command.argv[-1] == "inet" else inet6)

    return look(run)


def test_interfaces() -> None:
    found = {one.name: one for one in read_interfaces(IFCONFIG)}
    assert list(found) == ["lo0", "gif0", "stf0", "en0", "utun3"]
    en0 = found["en0"]
    assert (en0.mtu, en0.up, en0.leads_out) == (1500, True, True)
    assert list(map(str, en0.addresses)) == [
        "fe80::1c2f:11ff:fe22:3344/64",
        "192.168.1.23/24",
        "2001:db8:1:2:1:2:3:4/64",
        "2001:db8:1:2:aaaa:2:3:4/64",
    ]
    assert en0.unfit == {ip_interface("2001:db8:1:2:aaaa:2:3:4/64")}
    assert not found["utun3"].leads_out and not found["gif0"].up
    assert ip_interface("10.8.0.2/32") in found["utun3"].addresses


def test_routes() -> None:
    found = list(read_routes(INET, 4))
    assert [str(route.prefix) for route in found] == [
        "0.0.0.0/0",
        "0.0.0.0/0",
        "127.0.0.0/8",
        "127.0.0.1/32",
        "128.0.0.0/1",
        "169.254.0.0/16",
        "192.168.1.0/24",
        "192.168.1.1/32",
        "203.0.113.9/32",
        "224.0.0.0/4",
        "255.255.255.255/32",
    ]
    assert [route.scoped for route in found[:2]] == [False, True]
    assert str(found[0].next_hop) == "192.168.1.1" and found[4].next_hop is None
    six = list(read_routes(INET6, 6))
    assert [str(route.prefix) for route in six] == [
        "::/0",
        "::/0",
        "::1/128",
        "::/1",
        "2001:db8:1:2::/64",
        "fe80::/64",
        "fe80::/64",
        "ff00::/8",
    ]
    assert str(six[0].next_hop) == "fe80::1%en0"


def test_what_follows() -> None:
    state = answering()
    assert [str(net) for net in state.lan("utun8").prefixes] == ["192.168.1.0/24", "fe80::/64"]
    assert state.lan("utun8").uplinks == {"en0"}
    assert ip_network("2001:db8:1:2::/64") in state.lan("utun8").attached
    assert ip_network("10.8.0.2/32") in state.lan("utun8").attached
    four, six = state.uplink(4, "utun8"), state.uplink(6, "utun8")
    assert four is not None and (four.name, four.gateway, four.source) == (
        "en0",
        "192.168.1.1",
        "192.168.1.23",
    )
    assert six is not None and (six.gateway, six.source) == ("fe80::1%en0", "2001:db8:1:2:1:2:3:4")
    assert state.is_near(ip_address("192.168.1.77"), "utun8")
    assert not state.is_near(ip_address("10.8.0.2"), "utun8")
    assert refuse_other_tunnel(state, "utun8") == ""


def test_another_vpn_is_named() -> None:
    state = answering(
        inet=INET.replace("192.168.1.1        UGScg                 en0", "10.8.0.1  UGScg  utun3")
    )
    assert refuse_other_tunnel(state, "utun8") == "another VPN has the default route of IPv4 (utun3)"
    assert refuse_other_tunnel(state, "utun3") == ""


@pytest.mark.parametrize("texts", [{"ifconfig": "ifconfig: no such thing\n"}, {"inet": "Proto Recv-Q\n"}])
def test_an_unknown_answer_is_no_empty_machine(texts: dict[str, str]) -> None:
    with pytest.raises(CryprqError, match="answers in a form that is not understood"):
        answering(**texts)


@given(st.text(alphabet="0123456789abcdef.:/%-> \t\nenutlinkdefaultU#GSI<>=,()", max_size=300))
def test_any_text_is_read(text: str) -> None:
    list(read_interfaces(text))
    list(read_interfaces("en0: flags=8863<UP> mtu 1500\n" + text))
    for version in (4, 6):
        list(read_routes(text, version))
