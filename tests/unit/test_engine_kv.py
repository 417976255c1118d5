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


def test_a_second_computation_of_the_same_tokens_gives_way_to_the_first() -> None:
    pool = BlockPool(6)
    first, second = pool.allocate(None), pool.allocate(None)
    assert first is not None
    assert second is not None
    assert pool.publish(first, tuple(range(N))) is first
    assert pool.publish(second, tuple(range(N))) is first
    assert (first.refs, second.refs, pool.n_free) == (2, 0, 4)
    child = pool.allocate(second)
    assert child
    assert pool.publish(child, tuple(range(N))) is child
    assert not child.published  # nothing could reach it


def test_a_match_goes_on_behind_blocks_that_are_held() -> None:
    pool = BlockPool(10)
    tokens = list(range(3 * N + 5))
    release(pool, fill(pool, tokens))
    first = pool.match(tokens[: N + 1])
    rest = pool.match(tokens, first.blocks)
    assert [b.tokens for b in first.blocks + rest.blocks] == [tuple(tokens[i * N : (i + 1) * N]) for i in range(3)]
    assert rest.n_copy == 4
    assert (pool.n_cached, pool.n_free) == (1, 6)


def test_what_is_used_again_is_evicted_later() -> None:
    """Also after it was held and released so often that the order of eviction is written anew."""
    pool = BlockPool(4)
    for i in range(3):
        release(pool, fill(pool, [i] * N))
    for _ in range(200):
        release(pool, pool.match([0] * (N + 1)).blocks)
    assert [pool.allocate(None) is not None for _ in range(2)] == [True, True]
    assert [len(pool.match([i] * (N + 1)).blocks) for i in range(3)] == [1, 0, 0]
