"""Packet filters, as scripts of nft that pure functions make from settings.

policy              which part of a person's rules is the filter's work, and which rule is refused
filter_settings     what the client's table depends on
client_table        the client's table, and user_rules, inbound, client_words: its parts
client_marks        the chains of that table which mark connections, and accept them for their marks
marks               what the filter writes into a connection, and until when that holds
conntrack           deletes connections whose reason has ended
deletions           when that is done: beside further changes of a table
cgroups             which control groups are let past the tunnel
filter              the client's table in the kernel: put up, replaced, opened for a time
kill_switch         that filter as it must be at any moment, put back when another program removes it
exit_table          the exit's table: NAT, and what clients may not reach
nft                 runs scripts and reads what stands; the journal's undo
"""
