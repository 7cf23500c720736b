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


def test_a_private_address_needs_a_rule_of_the_persons_own() -> None:
    """Mostly it is the router or printer beside the person: the exit's operator has nothing to do with it."""
    _, body = error_page(refusal_for(StreamReason.NOT_ALLOWED, Destination("192.168.1.1", 80)), close=False)
    assert b'[[rule]] to = "direct"' in body and b"docs/rules.md" in body


def test_a_direct_name_that_may_not_mean_this_machine() -> None:
    refused = StreamReason.NOT_ALLOWED
    by_name = str(refusal_for(refused, Destination("rebound.example", 80), direct=True))
    assert "needs a rule that names its address too, in cidrs" in by_name
    assert "in cidrs" not in str(refusal_for(refused, Destination("127.0.0.1", 80), direct=True))
