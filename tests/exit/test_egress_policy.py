"""The egress policy: every special prefix, every wrapping, the three lists, and what bad entries get."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base.own_addresses import own_addresses
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.exit import egress_policy
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.egress_rules import parse_rule

DEFAULT = EgressPolicy()
PRIVATE = EgressPolicy(allow_private=True)

GLOBAL = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
    "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0",
    "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
    "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
    "2000::1", "2001:200::1", "2001:4860:4860::8888", "2001:db7:ffff:ffff::", "2001:db9::", "2003::1",
    "2606:4700::1111", "3ffe:ffff::", "3fff:1000::",
]  # fmt: skip

LIFTED_BY_PRIVATE = [
    "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1", "127.255.255.254",
    "169.254.0.1", "169.254.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255",
    "::1", "fc00::1", "fd12:3456::1", "fdff:ffff::", "fe80::1", "febf::1", "fec0::1", "feff::1",
]  # fmt: skip

NEVER = [
    "0.0.0.0", "0.0.0.1", "0.255.255.255", "192.0.0.0", "192.0.0.9", "192.0.0.170", "192.0.2.1", "192.88.99.1",
    "198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.255", "224.0.0.1", "239.255.255.255",
    "240.0.0.0", "255.255.255.254", "255.255.255.255",
    "::", "::2", "100::1", "100:0:0:1::1", "200::1", "1fff::", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff:ffff::", "2001:db8::1", "2001:db8:ffff::", "3fff::1",
    "3fff:fff:ffff::", "4000::", "5f00::1", "fbff::1", "fe00::1", "ff00::1", "ff02::1", "ff0e::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "64:ff9b:2::1", "64:ff9a::1", "::ffff:0:8.8.8.8", "::8.8.8.8",
]  # fmt: skip

METADATA = [
    "169.254.169.254", "169.254.169.253", "169.254.170.2", "169.254.170.23", "169.254.0.23", "169.254.42.42",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
    "fd00:42::42", "fd00:c1::a9fe:a9fe", "fe80::a9fe:a9fe",
]  # fmt: skip


def wrapped(inner: IPv4Address) -> dict[str, str]:
    """Every form in which an IPv6 address can carry `inner`."""
    value = int(inner)
    top, bottom = value >> 16, value & 0xFFFF

    def v6(number: int) -> str:
        return str(IPv6Address(number))

    local = 0x64_FF9B_0001 << 80
    return {
        "v4-mapped": v6(0xFFFF << 32 | value),
        "v4-mapped, dotted": f"::ffff:{inner}",
        "v4-compatible": v6(value),
        "NAT64": v6(0x64_FF9B << 96 | value),
        "NAT64, dotted": f"64:ff9b::{inner}",
        "local NAT64, /48": v6(local | top << 64 | bottom << 40),
        "local NAT64, /56": v6(local | (value >> 24) << 64 | (value & 0xFF_FFFF) << 32),
        "local NAT64, /64": v6(local | value << 24),
        "local NAT64, /96": v6(local | value),
        "6to4": v6(0x2002 << 112 | value << 80 | 1),
        "Teredo": v6(0x2001 << 112 | 0x0808_0808 << 64 | value ^ 0xFFFF_FFFF),
    }


@pytest.mark.parametrize("ip", GLOBAL)
def test_global_addresses_pass(ip: str) -> None:
    assert DEFAULT.check_address(ip, 443)
    assert PRIVATE.check_address(ip, 443)


@pytest.mark.parametrize("ip", LIFTED_BY_PRIVATE)
def test_private_addresses_pass_only_with_allow_private(ip: str) -> None:
    assert not DEFAULT.check_address(ip, 443)
    assert PRIVATE.check_address(ip, 443)


@pytest.mark.parametrize("ip", NEVER + METADATA)
def test_special_addresses_never_pass_by_themselves(ip: str) -> None:
    assert not DEFAULT.check_address(ip, 80)
    assert not PRIVATE.check_address(ip, 80)


@pytest.mark.parametrize("ip", METADATA)
def test_metadata_needs_an_exception_of_its_own(ip: str) -> None:
    family = "0.0.0.0/0" if "." in ip else "::/0"
    wide = str(ipaddress.ip_network((ip, 16 if "." in ip else 28), strict=False))
    for policy in (
        EgressPolicy(allow=[family, wide]),
        EgressPolicy(allow=[family, wide], allow_private=True),
    ):
        assert not policy.check_address(ip, 80)
    assert EgressPolicy(allow=[ip]).check_address(ip, 80)
    entry = f"{ip}:80" if "." in ip else f"[{ip}]:80"
    assert EgressPolicy(allow=[entry]).check_address(ip, 80)
    assert not EgressPolicy(allow=[entry]).check_address(ip, 81)


@pytest.mark.parametrize("network", [*egress_policy.PRIVATE, *egress_policy.SPECIAL, *egress_policy.METADATA])
def test_both_ends_of_each_table_entry_are_denied_and_lifted_by_an_exception(network: str) -> None:
    parsed = ipaddress.ip_network(network)
    for ip in {str(parsed[0]), str(parsed[-1])}:
        assert not DEFAULT.check_address(ip, 443)
    middle = parsed[parsed.num_addresses // 2]
    assert not DEFAULT.check_address(str(middle), 443)
    assert EgressPolicy(allow=[str(middle)]).check_address(str(middle), 443) or ":" in str(middle)


FORBIDDEN_V4 = st.sampled_from(
    [n for n in (*egress_policy.PRIVATE, *egress_policy.SPECIAL, *egress_policy.METADATA) if "." in n]
).flatmap(lambda network: st.ip_addresses(network=network))


@given(FORBIDDEN_V4)
def test_no_wrapping_gets_a_forbidden_address_through(inner: IPv4Address) -> None:
    for form, ip in wrapped(inner).items():
        assert not DEFAULT.check_address(ip, 443), form


POLICIES = (
    DEFAULT,
    PRIVATE,
    EgressPolicy(deny=["64.0.0.0/2"], own_addresses=["8.8.8.8"]),
    EgressPolicy(allow=["10.0.0.0/8", "::/0"], deny=["10.128.0.0/9"]),
    EgressPolicy(only=["0.0.0.0/1"]),
)


@given(st.ip_addresses(v=4))
def test_no_wrapping_is_laxer_than_the_address_itself(inner: IPv4Address) -> None:
    for policy in POLICIES:
        if not policy.check_address(str(inner), 443):
            for form, ip in wrapped(inner).items():
                # Of 0.0.0.0/8, :: and ::1 are addresses in their own right, and RFC 6052 leaves other readings.
                if int(inner) >> 24:
                    assert not policy.check_address(ip, 443), (form, ip)


@pytest.mark.parametrize("form", ["v4-mapped", "v4-mapped, dotted", "NAT64", "NAT64, dotted", "6to4"])
def test_wrapped_global_addresses_pass(form: str) -> None:
    assert DEFAULT.check_address(wrapped(IPv4Address("8.8.8.8"))[form], 443)


@pytest.mark.parametrize("form", ["v4-mapped", "NAT64", "6to4"])
def test_rules_reach_into_wrappings(form: str) -> None:
    public, private = IPv4Address("8.8.8.8"), IPv4Address("10.1.2.3")
    assert not EgressPolicy(deny=["8.8.8.0/24"]).check_address(wrapped(public)[form], 443)
    assert not EgressPolicy(own_addresses=["8.8.8.8"]).check_address(wrapped(public)[form], 443)
    assert EgressPolicy(allow=["10.0.0.0/8"]).check_address(wrapped(private)[form], 443)
    assert EgressPolicy(only=["8.8.8.0/24"]).check_address(wrapped(public)[form], 443)
    assert not EgressPolicy(only=["8.8.9.0/24"]).check_address(wrapped(public)[form], 443)


@pytest.mark.parametrize(
    "form", ["local NAT64, /48", "local NAT64, /56", "local NAT64, /64", "local NAT64, /96"]
)
def test_a_local_translator_is_opened_by_its_prefix_but_not_to_private_addresses(form: str) -> None:
    policy = EgressPolicy(allow=["64:ff9b:1::/48"])
    public, private = wrapped(IPv4Address("9.9.9.9"))[form], wrapped(IPv4Address("10.9.9.9"))[form]
    assert not DEFAULT.check_address(public, 443)
    assert policy.check_address(public, 443)
    assert not policy.check_address(private, 443)
    assert EgressPolicy(allow=["64:ff9b:1::/48", "10.0.0.0/8"]).check_address(private, 443)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "localhost", "127.1", "0x7f000001", "2130706433", "8.8.8.8 ", " 8.8.8.8", "8.8.8.8\0", "8.8.8.8.",
        "08.8.8.8", "fe80::1%eth0", "2606:4700::1111%1", "[2606:4700::1111]", "8.8.8.8:80", ":", "::ffff:8.8.8.256",
        "\u0668.8.8.8", "\ud800", "2606:4700::1111\0",
    ],
)  # fmt: skip
def test_only_literals_pass_as_addresses(text: str) -> None:
    assert not DEFAULT.check_address(text, 443)
    assert not PRIVATE.check_address(text, 443)
    assert not EgressPolicy(only=[":443"]).check_address(text, 443, text)


NAMED = EgressPolicy(deny=["*.a"], only=["b", ":443"])


@given(
    st.text(alphabet="0123456789abcdefx:.%[]-\0 ") | st.text(), st.integers(-1, 70_000), st.none() | st.text()
)
def test_checks_answer_to_any_text(text: str, port: int, name: str | None) -> None:
    assert isinstance(NAMED.check_address(text, port, name), bool)
    assert isinstance(NAMED.check_name(text, port), bool)


@given(st.ip_addresses())
def test_what_passes_is_global_to_the_standard_library_too(address: IPv4Address | IPv6Address) -> None:
    if DEFAULT.check_address(str(address), 443):
        # What counts of v4-mapped and 6to4 addresses is the IPv4 address inside; newer versions call 6to4 not global.
        inside = (address.ipv4_mapped or address.sixtofour) if isinstance(address, IPv6Address) else None
        assert (inside or address).is_global


@pytest.mark.parametrize("port", [-1, 0, 65_536, 1 << 40])
def test_ports_out_of_range_never_pass(port: int) -> None:
    for policy in (DEFAULT, EgressPolicy(allow=["8.8.8.8"], only=["8.8.8.8", "example.com"])):
        assert not policy.check_address("8.8.8.8", port)
        assert not policy.check_name("example.com", port)


# ---- the exit's own addresses


def test_own_addresses_are_denied_until_named() -> None:
    own = [
        "5.6.7.8",
        "10.0.0.5",
        "2606:4700::5",
        "127.0.0.1",
        "127.0.0.0/8",
        "::1",
        "fe80::5%eth0",
        "nonsense",
    ]
    policy = EgressPolicy(allow=["10.0.0.0/8", "127.0.0.0/8", "0.0.0.0/0"], own_addresses=own)
    assert not policy.check_address("5.6.7.8", 443)
    assert not policy.check_address("10.0.0.5", 443)
    assert not policy.check_address("2606:4700::5", 443)
    assert policy.check_address("5.6.7.9", 443)
    assert policy.check_address("10.0.0.6", 443)
    assert policy.check_address("127.0.0.1", 443)
    named = EgressPolicy(allow=["5.6.7.8:443", "2606:4700::5"], own_addresses=own)
    assert named.check_address("5.6.7.8", 443)
    assert not named.check_address("5.6.7.8", 22)
    assert named.check_address("2606:4700::5", 22)
    assert EgressPolicy(allow_private=True, own_addresses=own).check_address("5.6.7.8", 443)


def test_own_addresses_can_be_whole_prefixes() -> None:
    policy = EgressPolicy(allow=["5.6.7.128/25"], own_addresses=["5.6.7.0/24"])
    assert not policy.check_address("5.6.7.1", 443)
    assert policy.check_address("5.6.7.200", 443)


def test_own_addresses_are_replaced() -> None:
    policy = EgressPolicy(own_addresses=["5.6.7.8"])
    policy.update_own_addresses(["5.6.7.9"])
    assert policy.check_address("5.6.7.8", 443)
    assert not policy.check_address("5.6.7.9", 443)
    assert not policy.check_address("127.0.0.1", 443)
    assert not policy.check_address("169.254.169.254", 443)


def test_own_addresses_of_this_machine_are_usable() -> None:
    policy = EgressPolicy(own_addresses=own_addresses())
    for address in own_addresses():
        assert not policy.check_address(address.partition("/")[0], 443)


# ---- deny, allow, only


@pytest.mark.parametrize(
    ("entry", "denied", "passing"),
    [
        ("8.8.8.8", [("8.8.8.8", 1), ("8.8.8.8", 65_535)], [("8.8.8.9", 443)]),
        ("8.8.8.0/24", [("8.8.8.0", 443), ("8.8.8.255", 443)], [("8.8.7.255", 443), ("8.8.9.0", 443)]),
        ("8.8.8.0/24:1-1023", [("8.8.8.8", 1), ("8.8.8.8", 1023)], [("8.8.8.8", 1024), ("9.9.9.9", 22)]),
        (":25", [("8.8.8.8", 25), ("2606:4700::1", 25)], [("8.8.8.8", 24), ("8.8.8.8", 26)]),
        (":6881-6889", [("8.8.8.8", 6881), ("8.8.8.8", 6889)], [("8.8.8.8", 6880), ("8.8.8.8", 6890)]),
        ("2606:4700::/32", [("2606:4700::1", 443)], [("2606:4701::1", 443), ("8.8.8.8", 443)]),
        ("[2606:4700::/32]:80", [("2606:4700::1", 80)], [("2606:4700::1", 81), ("2606:4701::1", 80)]),
        ("[2606:4700::1]", [("2606:4700::1", 80)], [("2606:4700::2", 80)]),
        ("::/0", [("2606:4700::1", 80), ("::ffff:8.8.8.8", 80)], [("8.8.8.8", 80)]),
        ("8.8.8.8.", [("8.8.8.8", 80)], [("8.8.8.9", 80)]),
        ("8.8.8.8.:25", [("8.8.8.8", 25)], [("8.8.8.8", 26)]),
        ("8\u30028.8.8\u3002", [("8.8.8.8", 80)], [("8.8.8.9", 80)]),
    ],
)
def test_deny_by_address_and_port(
    entry: str, denied: list[tuple[str, int]], passing: list[tuple[str, int]]
) -> None:
    policy = EgressPolicy(deny=[entry])
    assert not [at for at in denied if policy.check_address(*at)]
    assert all(policy.check_address(*at) for at in passing)
    assert all(policy.check_name(*at) for at in passing)
    assert not [at for at in denied if policy.check_name(*at)]


@pytest.mark.parametrize(
    ("entry", "denied", "passing"),
    [
        (
            "example.com",
            ["example.com", "EXAMPLE.com."],
            ["www.example.com", "example.com.de", "xexample.com"],
        ),
        ("*.example.com", ["www.example.com", "a.b.example.com"], ["example.com", "xexample.com", "com"]),
        ("*.com", ["example.com", "www.example.com"], ["com", "example.org"]),
        ("Ex_ample.COM.", ["ex_ample.com"], ["example.com"]),
        ("bücher.example", ["xn--bcher-kva.example"], ["bucher.example"]),
        ("*.bücher.example", ["a.xn--bcher-kva.example"], ["xn--bcher-kva.example"]),
    ],
)
def test_deny_by_name(entry: str, denied: list[str], passing: list[str]) -> None:
    policy = EgressPolicy(deny=[entry])
    assert not [name for name in denied if policy.check_name(name, 443)]
    assert all(policy.check_name(name, 443) for name in passing)
    with_port = EgressPolicy(deny=[f"{entry}:25"])
    assert not [name for name in denied if with_port.check_name(name, 25)]
    assert all(with_port.check_name(name, 443) for name in denied + passing)


def test_a_denied_port_spares_the_query() -> None:
    assert not EgressPolicy(deny=[":25"]).check_name("example.com", 25)


def test_deny_beats_allow_and_only() -> None:
    everything = ["10.0.0.0/8", "8.8.8.8"]
    policy = EgressPolicy(
        allow=everything, only=everything, deny=["10.1.0.0/16", "8.8.8.8:80"], allow_private=True
    )
    assert policy.check_address("10.2.0.0", 80)
    assert not policy.check_address("10.1.0.0", 80)
    assert policy.check_address("8.8.8.8", 81)
    assert not policy.check_address("8.8.8.8", 80)
    assert not EgressPolicy(only=["example.com"], deny=["*.com"]).check_name("example.com", 443)


def test_allow_lifts_the_built_in_denials_for_its_addresses_and_ports_only() -> None:
    policy = EgressPolicy(allow=["10.0.0.0/8", "192.168.1.5:443", "[fd00::/8]:22", "224.0.0.0/4"])
    for ip, port in [
        ("10.1.2.3", 1),
        ("192.168.1.5", 443),
        ("fd12::1", 22),
        ("239.1.2.3", 5),
        ("8.8.8.8", 443),
    ]:
        assert policy.check_address(ip, port)
    for ip, port in [("192.168.1.5", 80), ("192.168.1.6", 443), ("fd12::1", 23), ("127.0.0.1", 443)]:
        assert not policy.check_address(ip, port)


@pytest.mark.parametrize("entry", ["example.com", "*.example.com", ":443", "example.com:443"])
def test_allow_takes_no_names_and_bare_ports(entry: str) -> None:
    with pytest.raises(ConfigError, match="only") as caught:
        EgressPolicy(allow=[entry])
    assert entry in str(caught.value)


def test_only_by_port() -> None:
    policy = EgressPolicy(only=[":80", ":443"])
    assert policy.check_address("8.8.8.8", 443)
    assert policy.check_name("example.com", 80)
    assert policy.check_address("8.8.8.8", 80, "example.com")
    assert not policy.check_address("8.8.8.8", 22)
    assert not policy.check_name("example.com", 22)
    assert not policy.check_address("127.0.0.1", 443)


def test_only_by_name_needs_the_name_and_a_good_address() -> None:
    policy = EgressPolicy(only=["example.com:443", "*.example.com"])
    assert policy.check_name("example.com", 443)
    assert policy.check_name("www.example.com", 22)
    assert not policy.check_name("example.com", 80)
    assert not policy.check_name("example.org", 443)
    assert policy.check_address("8.8.8.8", 443, "example.com")
    assert policy.check_address("8.8.8.8", 443, "Example.com.")
    assert not policy.check_address("8.8.8.8", 443)
    assert not policy.check_name("8.8.8.8", 443)
    assert not policy.check_address("8.8.8.8", 443, "example.org")
    assert not policy.check_address("127.0.0.1", 443, "example.com")


def test_only_by_address_takes_names_that_resolve_to_it() -> None:
    policy = EgressPolicy(only=["8.8.8.0/24:443"])
    assert policy.check_name("anything.example", 443)
    assert not policy.check_name("anything.example", 80)
    assert policy.check_address("8.8.8.8", 443, "anything.example")
    assert policy.check_address("8.8.8.8", 443)
    assert not policy.check_address("9.9.9.9", 443, "anything.example")


def test_only_never_widens() -> None:
    assert not EgressPolicy(only=["10.0.0.0/8"]).check_address("10.0.0.1", 443)
    assert EgressPolicy(only=["10.0.0.0/8"], allow=["10.0.0.0/8"]).check_address("10.0.0.1", 443)
    assert not EgressPolicy(only=["nas.example"]).check_address("10.0.0.1", 443, "nas.example")


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "a.localhost"])
def test_names_of_loopback(name: str) -> None:
    assert not DEFAULT.check_name(name, 80)
    assert not EgressPolicy(allow=["127.0.0.0/8"]).check_name(name, 80)
    assert PRIVATE.check_name(name, 80)
    assert DEFAULT.check_name("notlocalhost", 80)


@pytest.mark.parametrize("name", ["", ".", "b\u00fccher.example"])
def test_texts_that_are_no_names(name: str) -> None:
    assert not DEFAULT.check_name(name, 80)


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "10.0.0.1", "10.0.0.1.", "::ffff:127.0.0.1"])
def test_a_literal_as_a_name_is_judged_as_an_address(ip: str) -> None:
    assert not DEFAULT.check_name(ip, 80)
    assert PRIVATE.check_name(ip, 80)


# ---- entries


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("", "expected an address"),
        (" ", "expected an address"),
        ("80", "colon before it"),
        (":", "a port is a number"),
        ("a:", "a port is a number"),
        ("a:b", "a port is a number"),
        (":\u0668\u0660", "a port is a number"),
        ("a:0", "1 to 65535"),
        ("a:65536", "1 to 65535"),
        ("a:100000", "a port is a number"),
        (":9-1", "lower one"),
        (":1-2-3", "a port is a number"),
        (":-1", "a port is a number"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("[fd00::1/8]:80", "write fd00::/8"),
        ("10.0.0.256", "no valid IP address"),
        ("10.0.0", "no valid IP address"),
        ("10.0.0.0/33", "no valid IP address"),
        ("10.0.0.0/255.0.0.0", "number of bits"),
        ("10.0.0.0/", "number of bits"),
        ("example.com/24", "no valid IP address"),
        ("0x7f.1", "no valid IP address"),
        ("*.0.0.1", "no valid IP address"),
        ("*.0.0.1.", "no valid IP address"),
        ("10.0.0.1..", "expected an address"),
        ("0x7f.1.", "no valid IP address"),
        ("::1.", "no valid IP address"),
        ("fe80::1%eth0", "no zone"),
        ("[10.0.0.1]:80", "only IPv6"),
        ("[::1]x", "no valid IP address"),
        ("[]:80", "no valid IP address"),
        ("2001:db8::1:99999", "no valid IP address"),
        ("*", "beginning"),
        ("*:25", "beginning"),
        ("a.*.com", "beginning"),
        ("*.*.com", "beginning"),
        ("*a.com", "beginning"),
        ("a..b", "expected an address"),
        ("a b", "expected an address"),
        ("a" * 64, "expected an address"),
        ("\ud800", "expected an address"),
        ("http://example.com", "a port is a number"),
    ],
)
def test_a_bad_entry_is_named_with_what_is_expected(entry: str, hint: str) -> None:
    builds: list[Callable[[], EgressPolicy]] = [
        lambda: EgressPolicy(deny=["8.8.8.8", entry]),
        lambda: EgressPolicy(only=[entry]),
        lambda: EgressPolicy(allow=[entry]),
    ]
    for build in builds:
        with pytest.raises(ConfigError) as caught:
            build()
        assert repr(entry) in str(caught.value)
        assert hint in str(caught.value)


def test_where_begins_the_text() -> None:
    with pytest.raises(ConfigError, match=r"^egress\.deny in exit\.toml: "):
        parse_rule("*", "egress.deny in exit.toml")


@given(st.text(alphabet="0123456789abcx*.:/-[]% \u00fc\u0668") | st.text())
def test_only_config_errors_leave_the_parser(entry: str) -> None:
    try:
        rule = parse_rule(entry)
    except ConfigError:
        return
    assert 1 <= rule.first_port <= rule.last_port <= 65_535
    assert rule.network is None or not rule.name
    assert isinstance(EgressPolicy(deny=[entry]).check_address("8.8.8.8", 443), bool)


def test_many_rules_at_once() -> None:
    deny = [f"9.{n >> 8}.{n & 255}.0/25" for n in range(20_000)] + [f"*.n{n}.example" for n in range(1_000)]
    policy = EgressPolicy(deny=deny)
    assert not policy.check_address("9.78.31.127", 443)
    assert policy.check_address("9.78.31.128", 443)
    assert not policy.check_name("a.n999.example", 443)
    assert policy.check_name("n999.example", 443)
