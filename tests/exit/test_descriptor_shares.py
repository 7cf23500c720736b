"""Shares of the exit's file descriptors: nobody takes all, and what is given back is for all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.exit.descriptor_shares import Claim, DescriptorShares

FIRST, SECOND, THIRD = (PeerId(bytes([number]) * 32) for number in range(3))


def take_all(shares: DescriptorShares, peer: PeerId, each: int = 1) -> list[Claim]:
    claims = []
    while (claim := shares.claim(peer, each)) is not None:
        claims.append(claim)
    return claims


def test_one_peer_leaves_a_quarter() -> None:
    shares = DescriptorShares(1_000)
    assert len(take_all(shares, FIRST)) == 750
    assert shares.free == 250
    assert len(take_all(shares, SECOND, 2)) == 93
    assert len(take_all(shares, THIRD)) == 48
    assert shares.free == 16


def test_what_one_gives_back_another_may_have() -> None:
    shares = DescriptorShares(1_000)
    for claim in take_all(shares, FIRST):
        claim.release()
        claim.release()
    assert shares.free == 1_000
    assert len(take_all(shares, SECOND)) == 750


@given(
    st.lists(
        st.tuples(st.sampled_from((FIRST, SECOND, THIRD)), st.integers(1, 2), st.booleans()), max_size=300
    )
)
def test_there_are_never_more_than_there_are(steps: list[tuple[PeerId, int, bool]]) -> None:
    shares = DescriptorShares(40)
    held: list[tuple[int, Claim]] = []
    for peer, count, release in steps:
        if release and held:
            held.pop(0)[1].release()
        elif (claim := shares.claim(peer, count)) is not None:
            held.append((count, claim))
        assert shares.free == 40 - sum(count for count, _ in held)
        assert shares.free > 0


def test_the_sockets_of_a_name_count_like_streams() -> None:
    shares = DescriptorShares(8)
    claim = shares.claim(FIRST, 1)
    assert claim is not None
    taken = [claim.more() for _ in range(8)]
    assert taken == [True] * 5 + [False] * 3
    assert shares.claim(FIRST, 1) is None
    claim.less()
    assert shares.free == 3
    claim.release()
    claim.less()
    assert not claim.more()
    assert shares.free == 8
