"""The owner of the shared buffers."""

from __future__ import annotations

from cryprq_proxy.base.buffers import BufferPool, SharedBuffers


def test_a_pool_hands_out_what_it_got_back_and_keeps_few() -> None:
    pool = BufferPool(10, 2)
    buffers = [pool.take() for _ in range(4)]
    assert len({id(buffer) for buffer in buffers}) == 4
    assert {len(buffer) for buffer in buffers} == {10}
    for buffer in buffers:
        pool.give(buffer)
    assert pool.take() is buffers[1]
    assert pool.take() is buffers[0]
    assert id(pool.take()) not in {id(buffer) for buffer in buffers}


def test_a_purpose_has_one_buffer() -> None:
    shared = SharedBuffers()
    assert shared.scratch("a", 10) is shared.scratch("a", 10)
    assert shared.scratch("a", 10) is not shared.scratch("b", 10)
    assert shared.pool("a", 10, 1) is shared.pool("a", 10, 1)
    assert shared.pool("a", 10, 1) is not shared.pool("b", 10, 1)


def test_an_object_is_made_once() -> None:
    shared = SharedBuffers()
    assert shared.one(list) is shared.one(list)
    assert shared.one(list) is not SharedBuffers().one(list)
