"""The DNS forwarder of system-wide mode: every name that this machine asks for goes through the link.

In the order in which a question passes:

    server      UDP and TCP sockets on the addresses to which the packet filter sends port 53
    query       a client's bytes to a `Query`; what is refused or dropped (the numbers of DNS are in codes)
    names       names in wire form, their parent domains, and those that no server is asked for (RFC 6761)
    blocklist   names that a person blocks
    cache       answers until their time is over, and beyond it while no upstream answers (RFC 8767)
    forwarder   puts these together: one upstream question for many equal ones, bounds, counters
    upstreams   which server is asked, when the next one is, and which of them are healthy
    inquiry     what a server is asked, and which of its messages is believed
    framed, tls, https
                three transports: messages on a byte stream, inside TLS, as HTTP
    lan_server  a resolver of the LAN, past the tunnel, for names that the configuration lists
    marked_server
                one server past the tunnel, over UDP and TCP; the look-up of the exit's own name asks so too
    answer      an answer as it is kept and as a client gets it
    setup       makes all of it from settings

Only lan_server opens a socket towards the network. All other upstreams are reached by streams that the caller opens
through the link, so whatever fails, no question for a name that is not listed can leave past the link.
"""
