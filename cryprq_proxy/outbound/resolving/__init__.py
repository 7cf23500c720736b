"""Names to addresses, on the machine that connects to them.

    resolver            the cache, one look-up for many equal questions, and its end when nobody waits
    fair_slots          how many look-ups run at once, and whose turn is next
    host_configuration  what the host's files say: servers, search list, hosts (hosts_file)
    c_library           look-ups by getaddrinfo on threads
    outcome             what a look-up ends with

Read them in this order.
"""
