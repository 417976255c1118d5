"""The tree of KV blocks: sharing, copying, eviction, and that no block has two owners who write it."""

from ggrun.engine.kv import NULL_BLOCK, BlockPool
from ggrun.plan.device import KV_BLOCK_TOKENS as N


def fill(pool: BlockPool, tokens: list[int], n_cached: int = 0) -> list:
    """Blocks for tokens after what match() gives, published as if computed; references held."""
    match = pool.match([*tokens, -1])
    blocks = list(match.blocks)
    for start in range(len(blocks) * N, len(tokens), N):
        block = pool.allocate(blocks[-1] if blocks else None)
        assert block is not None
        blocks.append(block)
        pool.publish(block, tuple(tokens[start : start + N]))
    return blocks


def release(pool: BlockPool, blocks: list) -> None:
    for block in reversed(blocks):
        pool.release(block)


def test_a_repeated_prompt_is_found_but_for_its_last_token() -> None:
    pool = BlockPool(10)
    tokens = list(range(2 * N + 5))
    release(pool, fill(pool, tokens))
    match = pool.match(tokens)
    assert [b.tokens for b in match.blocks] == [tuple(tokens[:N]), tuple(tokens[N : 2 * N])]
    assert match.source is not None
    assert match.n_copy == 4  # five cells match, the fifth token must be computed for its logits
    release(pool, match.blocks)
    whole = pool.match(tokens[: 2 * N])
    assert len(whole.blocks) == 1
    assert whole.n_copy == N - 1


def test_sequences_share_full_blocks_and_copy_from_parting_ones() -> None:
    pool = BlockPool(10)
    a = fill(pool, list(range(2 * N)))
    other = list(range(N + 7)) + [999] * 20
    match = pool.match(other)
    assert match.blocks == a[:1]
    assert match.blocks[0].refs == 2
    assert match.source is a[1]
    assert match.n_copy == 7


def test_unpublished_blocks_are_never_found_and_are_free_when_released() -> None:
    pool = BlockPool(4)
    block = pool.allocate(None)
    assert block is not None
    assert pool.match([0] * 40).source is None
    pool.release(block)
    assert pool.n_free == 3


def test_eviction_takes_the_least_recently_used_leaf_and_never_a_used_block() -> None:
    pool = BlockPool(5)
    old, new = fill(pool, [1] * (2 * N)), fill(pool, [2] * (2 * N))
    release(pool, old)
    assert pool.allocate(None) is not None  # evicts old's second block
    assert len(pool.match([1] * (2 * N)).blocks) == 1  # its first is still there, and now in use
    assert pool.allocate(None) is None
    release(pool, new)
    assert pool.n_free == 2


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(4)
    blocks = [pool.allocate(None) for _ in range(4)]
    assert blocks[3] is None
    assert all(b.id != NULL_BLOCK for b in blocks if b)


def test_a_second_computation_of_the_same_tokens_stays_private() -> None:
    pool = BlockPool(6)
    first, second = pool.allocate(None), pool.allocate(None)
    assert first is not None
    assert second is not None
    pool.publish(first, tuple(range(N)))
    pool.publish(second, tuple(range(N)))
    assert first.published
    assert not second.published
    child = pool.allocate(second)
    assert child
    pool.publish(child, tuple(range(N)))
    assert not child.published  # nothing could reach it
