"""The network device: packets of this machine as bytes in a buffer, and back.

Read `device.py` first, which every system shares, then `linux.py`; `macos.py` has not run on a Mac yet. `packets.py`
reads IP headers, `offload.py` describes, repairs and cuts super-packets, `coalesce.py` joins UDP packets to them.
"""
