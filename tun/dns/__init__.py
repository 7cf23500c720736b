"""The DNS forwarder of the system-wide mode: every name that this machine asks for goes through the link.

In the order in which a question passes:

    server      UDP and TCP sockets on the addresses that the packet filter brings port 53 to
    messages    a question's bytes to a `Query`, an upstream's bytes to an `Answer`, and back to bytes
    names       names in wire form; those that no server in the world is asked for (RFC 6761 and its kin)
    blocklist   names that are answered here because a person does not want them
    cache       answers until their time is over, and beyond when nobody can be asked (RFC 8767)
    forwarder   puts these together: one upstream question for many equal ones, bounds, counters
    upstreams   which server is asked, when the next one, and which of them are well
    framed, tls, https
                the three ways to ask one: messages on a byte stream, inside TLS, as HTTP
    setup       all of it from `settings`

No module here opens a socket towards the network: upstreams are reached by streams that the caller opens through the
link, so that a question cannot leave by another way, whatever fails.
"""
