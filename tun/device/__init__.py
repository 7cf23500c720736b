"""The network device: packets of this machine as bytes in a buffer, and back.

Read `device.py` first, which every system shares; `tun/linux/device.py` and `tun/macos/device.py` make one.
`packets.py` reads IP headers, `offload.py` describes, repairs and cuts super-packets, `coalesce.py` joins UDP packets
to them.
"""
