"""Hosts files, also such as no program writes."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.outbound.resolving.hosts_file import MAX_ADDRESSES, read_hosts

NAME = "exit.example.org"


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60), st.just(b"192.0.2.1 " + NAME.encode()), st.just(b"::1 x " + NAME.encode())
        )
    ).map(b"\n".join)
)
def test_any_hosts_file_can_be_read(content: bytes) -> None:
    for addresses in read_hosts(content).values():
        assert 0 < len(addresses) <= MAX_ADDRESSES
        for address in addresses:
            ipaddress.ip_address(address)


def test_names_and_their_addresses() -> None:
    found = read_hosts(
        b"192.0.2.1 exit.example.org. # comment\n::1 other\n2001:db8::1\tx Exit.Example.Org\n"
        b"#192.0.2.3 exit.example.org\nx exit.example.org\n192.0.2.1 exit.example.org\n192.0.2.4\n"
    )
    assert found == {
        NAME: ("2001:db8::1", "192.0.2.1"),
        "other": ("::1",),
        "x": ("2001:db8::1",),
    }


def test_the_addresses_of_a_name_are_bounded() -> None:
    content = b"".join(b"192.0.2.%d a\n" % number for number in range(200))
    assert read_hosts(content)["a"] == tuple(f"192.0.2.{number}" for number in range(MAX_ADDRESSES))
