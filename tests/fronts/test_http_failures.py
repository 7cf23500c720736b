"""What an HTTP client is told when there is no stream."""

from __future__ import annotations

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.fronts.http_failures import FAILURES, error_page, refusal_for


def test_every_reason_has_a_page() -> None:
    assert set(FAILURES) == set(StreamReason)
    destination = Destination("example.org", 80)
    for reason in StreamReason:
        response, body = error_page(refusal_for(reason, destination), close=False)
        assert 400 < response.status_code < 600
        assert b"example.org:80" in body
        assert dict(response.headers)[b"content-length"] == str(len(body)).encode()
