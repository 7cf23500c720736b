"""Networks as ranges."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.rules.ranges import IPNetwork, without


@given(st.integers(0, 32), st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_a_prefix_without_another(size: int, base: int, hole_size: int, hole_base: int) -> None:
    network = IPv4Network((base, size), strict=False)
    hole = IPv4Network((hole_base, hole_size), strict=False)
    left = without([network], [hole])
    common = min(network.num_addresses, hole.num_addresses) if network.overlaps(hole) else 0
    assert sum(each.num_addresses for each in left) == network.num_addresses - common
    assert all(isinstance(each, IPv4Network) and each.subnet_of(network) for each in left)
    assert not any(each.overlaps(hole) for each in left)


def test_holes_of_the_other_version_take_nothing() -> None:
    both: list[IPNetwork] = [IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/32")]
    holes: list[IPNetwork] = [IPv6Network("::/1"), IPv4Network("10.128.0.0/9")]
    assert without(both, holes) == [IPv4Network("10.0.0.0/9")]
