"""Name servers of any resolv.conf."""

from __future__ import annotations

from cryprq_proxy.base.resolv_conf import MAX_NAMESERVERS, nameservers


def test_nameservers() -> None:
    content = (
        b"; comment\n#nameserver 192.0.2.9\n nameserver\t192.0.2.1 # first\nnameserver 192.0.2.1\n"
        b"nameserver fe80::1%eth0\nnameserver 2001:DB8::1\nnameserver\nnameserver example.org\n"
        b"nameserver 192.0.2.300\nnameservers 192.0.2.8\nsearch lan\r\nnameserver \xff\n"
    )
    assert nameservers(content) == ("192.0.2.1", "fe80::1%eth0", "2001:db8::1")
    many = b"".join(b"nameserver 192.0.2.%d\n" % number for number in range(100))
    assert len(nameservers(many)) == MAX_NAMESERVERS
