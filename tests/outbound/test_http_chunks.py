"""Slices of chunked bodies, for all divisions of a body into reads. Bounds: tests/fronts/test_http_turns.py."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cryprq_proxy.outbound.http_chunks import CHUNK_WORK, ENDLESS, SLICE_CHUNKS, ChunkScanner


@example([1] * (SLICE_CHUNKS - 1), [1_000])  # the end and the trailers are in a full slice
@given(st.lists(st.integers(1, 300), max_size=600), st.lists(st.integers(1, 5_000), min_size=1))
def test_slices_are_all_of_a_body_and_few_chunks_each(chunks: list[int], sizes: list[int]) -> None:
    framed = [b"%X;a=b\r\n%b\r\n" % (size, b"\n" * size) for size in chunks]
    body = b"".join(framed) + b"0\r\nA: b\r\n\r\n"
    scanner, waiting, cut, given_on = ChunkScanner(), b"", 0, 0
    while given_on < len(body):
        size, work = scanner.cut(waiting)
        # The two lines of the trailers may be beside them.
        assert work <= (SLICE_CHUNKS + 2) * CHUNK_WORK
        waiting, given_on = waiting[size:], given_on + size
        if not size:
            more = sizes[cut % len(sizes)]
            at = given_on + len(waiting)
            waiting, cut = waiting + body[at : at + more], cut + 1
    assert given_on == len(body)
    assert waiting == b""


def test_a_body_that_is_not_chunked_is_never_cut() -> None:
    scanner = ChunkScanner(ENDLESS)
    assert [scanner.cut(data) for data in (b"1\r\n", b"\n" * 5_000)] == [(3, 0), (5_000, 0)]
