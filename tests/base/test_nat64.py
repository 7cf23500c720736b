"""The translation of IPv4 addresses, with the examples of RFC 6052 section 2.4."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base.nat64 import translated

ADDRESS = IPv4Address("192.0.2.33")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("2001:db8:c000:aa::", "2001:db8:c000:221::"),
        ("2001:db8:1c0:0:aa::", "2001:db8:1c0:2:21::"),
        ("2001:db8:122:c000:0:aa00::", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:3c0:0:aa::", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344:c0:0:aa00::", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::c000:aa", "2001:db8:122:344::c000:221"),
        ("64:ff9b::c000:ab", "64:ff9b::c000:221"),
    ],
)
def test_each_length_of_prefix(answer: str, found: str) -> None:
    assert translated(ADDRESS, [answer]) == (str(IPv6Address(found)),)


def test_what_names_no_nat64() -> None:
    assert translated(ADDRESS, ["192.0.0.170", "2001:db8::1", "garbage", ""]) == ()


def test_one_prefix_is_used_once() -> None:
    assert translated(ADDRESS, ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]) == ("64:ff9b::c000:221",)


@given(st.lists(st.ip_addresses().map(str) | st.text(), max_size=5))
def test_any_answer_gives_addresses(answers: list[str]) -> None:
    for found in translated(ADDRESS, answers):
        assert IPv6Address(found)
