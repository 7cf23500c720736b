"""System-wide mode on Linux: TUN device, policy routing, nftables, and the resolver of the system.

Nothing outside of this folder knows nft, netlink or the files that Linux is set by.
"""
