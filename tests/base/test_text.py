"""Peers and exits as a person reads them."""

from __future__ import annotations

import pytest

from cryprq_proxy.base.text import MAX_SHOWN, named_exit

PEER_ID = "ell5z3kq" + "a" * 44


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("home", "home (192.0.2.7:4433)"),
        ("", "ell5z3kq... (192.0.2.7:4433)"),
        ("\x1b[2J", "\\x1b[2J (192.0.2.7:4433)"),
        ("x" * 1000, "x" * MAX_SHOWN + " (192.0.2.7:4433)"),
    ],
)
def test_an_exit_is_named_and_its_address_follows(name: str, shown: str) -> None:
    """From the control socket a status may have any name."""
    assert named_exit(name, PEER_ID, "192.0.2.7:4433") == shown
