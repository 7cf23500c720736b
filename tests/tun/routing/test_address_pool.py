"""Addresses inside the tunnel: stable, disjoint, and never one that is somebody else's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError, CryprqError
from tests.support.settings import exit_network_settings
from tun.routing.address_pool import MOST_OF_ONE_PEER, AddressPool, Occupied, free_pools
from tun.settings import POOLS4, POOLS6, RESOLVER4, RESOLVER6


def pool4(text: str = str(POOLS4[0])) -> AddressPool[IPv4Address]:
    network = IPv4Network(text)
    return AddressPool(network, network[1], RESOLVER4)


def pool6(text: str = str(POOLS6[0])) -> AddressPool[IPv6Address]:
    network = IPv6Network(text)
    return AddressPool(network, network[1], RESOLVER6)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32))


@pytest.mark.parametrize("make", [pool4, pool6])
def test_a_peer_keeps_its_address_also_in_the_exits_next_life(make: Any) -> None:
    first, second = make(), make()
    addresses = [first.address(peer(number)) for number in range(50)]
    assert [first.address(peer(number)) for number in range(50)] == addresses
    # In another order, too, as long as no two of them want the same one.
    assert [second.address(peer(number)) for number in reversed(range(50))] == addresses[::-1]


def test_the_default_addresses_are_what_they_were_in_all_versions() -> None:
    """A change here gives every client of an updated exit another address."""
    assert str(pool4().address(peer(7))) == "198.18.203.37"
    assert str(pool6().address(peer(7))) == "fd63:7279:7071:0:4ece:fe33:5d8f:2a2c"


@pytest.mark.parametrize("text", ["10.0.0.0/29", "10.0.0.0/28", "198.18.255.48/28"])
def test_all_of_a_pool_is_given_out_and_no_more(text: str) -> None:
    """What is left out: the network's own address, the exit's, the broadcast address, and that of the resolver."""
    pool = pool4(text)
    hosts = set(pool.network) - {pool.network[0], pool.network[1], pool.network[-1], RESOLVER4}
    given_out = {pool.address(peer(number)) for number in range(len(hosts))}
    assert given_out == hosts
    with pytest.raises(CryprqError, match=f"the pool {text} has no address left: give the exit a larger one"):
        pool.address(peer(1000))
    assert pool.address(peer(0)) in hosts, "who has one keeps it"


def test_who_comes_second_gets_the_next_free_one() -> None:
    """Of 100 peers in 13 addresses, some collide: the first keeps what it would have had alone."""
    alone = {number: pool4("10.0.0.0/28").address(peer(number)) for number in range(100)}
    first, second = next((a, b) for a in range(100) for b in range(a + 1, 100) if alone[a] == alone[b])
    pool = pool4("10.0.0.0/28")
    assert pool.address(peer(first)) == alone[first]
    behind = int(alone[second]) + 1
    expected = IPv4Address(behind) if behind < int(pool.network[-1]) else pool.network[2]
    assert pool.address(peer(second)) == expected


@given(
    st.sampled_from(
        ["10.0.0.0/29", "10.0.0.0/24", "198.18.255.0/24", "fd00::/125", "fd63:7279:7071::50/124"]
    ),
    st.lists(st.binary(min_size=32, max_size=32), max_size=40),
)
def test_addresses_are_hosts_of_the_pool_and_of_one_peer_each(text: str, ids: list[bytes]) -> None:
    pool: AddressPool[Any] = pool6(text) if ":" in text else pool4(text)
    owners: dict[Any, bytes] = {}
    for raw in ids:
        try:
            address = pool.address(PeerId(raw))
        except CryprqError:
            assert len(owners) >= pool.network.num_addresses - 4
            continue
        assert address in pool.network
        assert address not in (pool.network[0], pool.network[1], pool.network[-1], RESOLVER4, RESOLVER6)
        assert owners.setdefault(address, raw) == raw


def occupied(attached: str = "", routed: str = "") -> Occupied:
    everywhere = ["0.0.0.0/0", "::/0", *routed.split()]
    return Occupied(tuple(map(ip_network, attached.split())), tuple(map(ip_network, everywhere)))


@pytest.mark.parametrize(
    ("attached", "routed", "pools"),
    [
        ("10.0.0.0/8 fd00::/64", "172.16.0.0/12", (0, 0)),
        ("198.18.0.1/32", "", (1, 0)),
        ("", "198.18.7.0/24", (1, 0)),
        ("", "198.18.0.0/15 10.0.0.0/8", (0, 0)),
        ("", "198.18.0.0/15", (2, 0)),
        ("198.18.0.0/15", "10.171.0.0/16", (3, 0)),
        ("fd63:7279:7071::9/128", "fc00::/7", (0, 1)),
    ],
)
def test_the_first_pool_that_is_free_here(attached: str, routed: str, pools: tuple[int, int]) -> None:
    """Nothing attached overlaps it, and no route is as narrow; better still, no route covers it at all."""
    chosen = free_pools(exit_network_settings(), occupied(attached, routed))
    assert (chosen.pool4, chosen.pool6) == (POOLS4[pools[0]], POOLS6[pools[1]])


def test_where_no_pool_is_free() -> None:
    with pytest.raises(ConfigError, match=r"are in use on this machine: set tun\.pool4 to a free prefix"):
        free_pools(exit_network_settings(), occupied("198.18.0.0/15 10.0.0.0/8"))


def test_a_pool_that_a_person_has_chosen_stays_or_is_refused() -> None:
    pool = IPv4Network("10.9.0.0/16")
    settings = exit_network_settings(pool4=pool, fixed=frozenset({4}))
    assert free_pools(settings, occupied("192.168.0.0/16", "10.0.0.0/8")).pool4 == pool
    for attached, routed, found in (("10.9.3.0/24", "", "10.9.3.0/24"), ("", "10.9.0.0/16", "10.9.0.0/16")):
        with pytest.raises(ConfigError) as caught:
            free_pools(settings, occupied(attached, routed))
        assert str(caught.value) == (
            f"the pool 10.9.0.0/16 is in use on this machine ({found}): choose another one for tun.pool4"
        )


@given(
    st.lists(st.sampled_from(list(IPv4Network("10.0.0.0/24").subnets(new_prefix=27))), max_size=8),
    st.integers(),
)
def test_an_address_outside_of_what_the_client_cannot_take(avoid: list[IPv4Network], seed: int) -> None:
    """It is found wherever there is one, however many are taken."""
    pool = pool4("10.0.0.0/24")
    for number in range(seed % 40):
        pool.address(peer(number))
    one = peer(1000)
    first = pool.address(one)
    free = set(pool.network) - {pool.network[0], pool.network[1], pool.network[-1], *pool._taken} | {first}
    if any(not any(address in prefix for prefix in avoid) for address in free):
        other = pool.address(one, avoid)
        assert other in free and not any(other in prefix for prefix in avoid)
        assert pool.address(one, avoid) == other and pool.address(one) == first
    else:
        with pytest.raises(CryprqError, match=r"the pool 10\.0\.0\.0/24 has no address for it outside of"):
            pool.address(one, avoid)


def test_a_peer_that_refuses_everything_takes_few_addresses() -> None:
    pool = pool4("10.0.0.0/24")
    refused: list[IPv4Network] = []
    for _ in range(MOST_OF_ONE_PEER):
        refused.append(IPv4Network(pool.address(peer(1), refused)))
    with pytest.raises(CryprqError, match="outside of"):
        pool.address(peer(1), refused)
    assert len(pool._taken) == MOST_OF_ONE_PEER
    for avoid in (["0.0.0.0/0"], ["10.0.0.0/25", "10.0.0.128/25"]):
        with pytest.raises(CryprqError):
            pool.address(peer(2), list(map(ip_network, avoid)))
