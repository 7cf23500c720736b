"""One UDP port for two exits: the one that lets its sessions run out, and its successor.

    datagram -> the kernel's filter -> its index ends with the tag of the newest socket?  yes -> that socket
                                                                                          no  -> the older one

Sockets with SO_REUSEPORT that are bound to one address make a group (socket(7)), and a classic BPF program
(SO_ATTACH_REUSEPORT_CBPF) chooses among them by their position in it: an older socket has 0, the newest 1. When the
older one is closed, the newest has position 0. The program still says 1 then; to a position that does not exist the
kernel prefers the socket that there is. The kernel lets only processes of one user share a port, and asks for no more
rights than that.

A third exit that starts while two are there has position 2, which its program does not name: the lanes of the younger
two stay down until one of the older two has gone, and what they carried goes over the carrier. So it is where two have
drawn the same tag, once in 4,096 times, for the lanes of the older one.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

from ...crypto.primitives import Entropy, system_entropy
from ...lane.layout import FIELDS

TAG_BITS: Final = 12
"""Bits at the end of each index that are the same for all lanes of one process; a million indices are left to it."""
_MASK: Final = (1 << TAG_BITS) - 1

# Linux (socket(7), linux/filter.h); the socket module does not have it.
SO_ATTACH_REUSEPORT_CBPF: Final = 51
_LOAD_HALF: Final = 0x28
"""BPF_LD | BPF_H | BPF_ABS, from the start of the UDP payload."""
_AND: Final = 0x54
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_INSTRUCTION: Final = struct.Struct("HBBI")
"""struct sock_filter: code, instructions to skip if true, if false, operand."""
_PROGRAM: Final = struct.Struct("@HP")
"""struct sock_fprog: number of instructions, their address."""
_INDEX_END: Final = struct.calcsize("!" + FIELDS[:2])


def new_tag() -> int:
    return int.from_bytes(system_entropy(2)) & _MASK


def tagged(entropy: Entropy, tag: int) -> Entropy:
    """Draws of indices that end with `tag`."""
    return lambda size: (int.from_bytes(entropy(size)) & ~_MASK | tag).to_bytes(size)


def share(sock: socket.socket) -> bool:
    """Let `sock`, which is not bound yet, take a port that another exit of the same user still has; `steer` must follow
    right after the bind. False where the system cannot do it: then one process has the port alone."""
    # A program that is attached before the bind would keep the socket out of the group.
    with socket.socket(sock.family, sock.type) as trial:
        try:
            for one in (trial, sock):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            steer(trial, 0)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
            return False
    return True


def steer(sock: socket.socket, tag: int) -> None:
    """Let the kernel give datagrams whose index ends with `tag` to `sock`, the newest on its port, and all others to
    the older one. Raises OSError."""
    program = b"".join(
        (
            _INSTRUCTION.pack(_LOAD_HALF, 0, 0, _INDEX_END - 2),
            _INSTRUCTION.pack(_AND, 0, 0, _MASK),
            _INSTRUCTION.pack(_JUMP_IF_EQUAL, 0, 1, tag),
            _INSTRUCTION.pack(_RETURN, 0, 0, 1),
            _INSTRUCTION.pack(_RETURN, 0, 0, 0),
        )
    )
    held = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_REUSEPORT_CBPF,
        _PROGRAM.pack(len(program) // _INSTRUCTION.size, ctypes.addressof(held)),
    )
