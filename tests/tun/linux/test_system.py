"""What Linux says before system-wide mode changes anything."""

from __future__ import annotations

import pytest

from cryprq_proxy.base import forwarder_port
from tests.support.settings import tunnel_settings
from tun.linux.system import Linux


def test_a_start_says_that_every_user_may_have_the_forwarders_port(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forwarder_port, "open_to_all", lambda: "every user may listen on port 1022 here")
    Linux().prepare(tunnel_settings())
    assert caplog.messages == [
        "every user may listen on port 1022 here; only root may after: "
        "sysctl -w net.ipv4.ip_unprivileged_port_start=1024"
    ]
