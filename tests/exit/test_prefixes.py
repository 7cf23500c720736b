"""Which addresses are counted together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.exit.prefixes import prefixes_of


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("192.0.2.1", "192.0.2.1", 3),
        ("192.0.2.1", "192.0.2.2", 2),
        ("192.0.2.1", "192.0.3.1", 1),
        ("192.0.2.1", "192.1.2.1", 0),
        ("192.0.2.1", "::ffff:192.0.2.1", 3),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", 2),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", 3),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", 2),
        ("2001:db8:1::1", "2001:db8:2::1", 1),
        ("2001:db8::1", "2001:db9::1", 0),
        ("fe80::1%eth0", "fe80::2%eth1", 3),
        ("192.0.2.1", "::192.0.2.1", 0),
        ("32.1.13.184", "2001:db8::1", 0),
    ],
)
def test_neighbours_share_the_wider_prefixes(one: str, other: str, shared: int) -> None:
    first, second = prefixes_of(one), prefixes_of(other)
    assert len(set(first) & set(second)) == shared
    assert first[3 - shared :] == second[3 - shared :]


@given(st.text())
def test_any_text_has_prefixes(text: str) -> None:
    assert len(prefixes_of(text)) in (1, 3)


def test_what_is_no_address_is_counted_together() -> None:
    assert prefixes_of("") == prefixes_of("x") == prefixes_of("1.2.3") == (b"",)
