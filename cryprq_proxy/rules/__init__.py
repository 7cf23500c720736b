"""The rules that give each connection its route: the first match wins.

    ranges    addresses and ports as sorted ranges, and how they are written
    syntax    what a rule may say, and the canonical form of each part
    lists     files with up to millions of names, kept as hashes
    engine    all rules together, one decision per connection
    explain   a decision in words

The proxy decides by the same `RuleSet` from which the PAC file and system-wide mode are made. So a rule is written once
and means the same everywhere. Nothing here resolves a name or opens a socket.
"""
