"""Whether the kernel keeps the forwarder's port for root."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryprq_proxy.base.forwarder_port import open_to_all


@pytest.mark.parametrize(
    ("value", "is_open"),
    [
        ("0\n", True),
        ("1022\n", True),
        ("1023\n", False),
        ("1024\n", False),
        ("65536\n", False),
        ("none\n", False),
        (None, False),
    ],
)
def test_the_first_port_of_every_user_tells(tmp_path: Path, value: str | None, is_open: bool) -> None:
    if value is not None:
        file = tmp_path / "proc/sys/net/ipv4/ip_unprivileged_port_start"
        file.parent.mkdir(parents=True)
        file.write_text(value)
    said = open_to_all(tmp_path)
    assert bool(said) == is_open
    if is_open:
        assert "port 1022" in said and f"ip_unprivileged_port_start is {value}".strip() in said
