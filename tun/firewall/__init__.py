"""What the packet filter of system-wide mode depends on, and how it is kept, on every system.

policy              which part of a person's rules is the filter's work, and which rule is refused
filter_settings     what the client's filter depends on
deletions           deletes connections whose reason has ended, beside further changes
kill_switch         that filter as it must be at any moment, put back when another program removes it
inbound             which connections came in from outside
own_page            our own page, for minutes
"""
