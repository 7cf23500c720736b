"""Packet filters, as scripts of nft that pure functions make from settings.

client_table        the client's table, and user_rules, page_rules, client_words: its parts
client_marks        the chains of that table which mark connections, and accept them for their marks
marks               what the filter writes into a connection, and until when that holds
conntrack           deletes connections whose reason has ended
cgroups             which control groups are let past the tunnel
filter              the client's table in the kernel: put up, replaced, opened for a time
exit_table          the exit's table: NAT, and what clients may not reach
nft                 runs scripts and reads what stands; the journal's undo
"""
