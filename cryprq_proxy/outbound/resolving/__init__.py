"""Names to addresses, on the machine that connects to them.

    resolver            the cache, one look-up for many equal questions, and its end when nobody waits
    fair_slots          how many look-ups run at once, and whose turn is next
    host_configuration  what the host's files say: servers, search list, hosts (hosts_file), or "ask the C library"
    dns_names           look-ups by DNS: hosts file, search list, servers in turn
    dns_addresses       the questions for both families of a name, to one server
    name_server         one question to one server, over UDP and TCP
    dns_answer          what a question and an answer are in bytes
    destination_order   which of the addresses is tried first (RFC 6724)
    c_library           look-ups by getaddrinfo on threads, where the host asks for more than files and DNS
    outcome             what a look-up ends with

Read them in this order. tun/ asks its own questions with dns_addresses and name_server.
"""
