"""A Sequence: the engine's end of one generation: its tokens, where their keys and values lie, and how the next is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ggrun.engine.kv import Block, BlockPool
from ggrun.plan.device import KV_BLOCK_TOKENS

if TYPE_CHECKING:
    from ggrun.engine.generation import Generation
    from ggrun.engine.sampling import Sampler
    from ggrun.engine.scores import PromptScores
    from ggrun.engine.stops import StopMatcher
    from ggrun.text.decoder import IncrementalDecoder

Overflow = Literal["stop", "shift"]


class Sequence:
    """tokens[:n_computed] have their keys and values in `blocks`; the rest waits to be computed.

    leader: an older sequence that is computing the n_shared tokens both begin with; this one waits for its blocks. scores: takes the
    logits of its prompt's rows, where they are wanted.
    """

    def __init__(
        self,
        generation: Generation,
        sampler: Sampler,
        decoder: IncrementalDecoder,
        stops: StopMatcher,
        end_of_generation: frozenset[int],
        n_predict: int,
        keep: int,
        on_overflow: Overflow,
        cache_prompt: bool = True,
        scores: PromptScores | None = None,
    ) -> None:
        self.generation = generation
        self.sampler = sampler
        self.decoder = decoder
        self.stops = stops
        self.end_of_generation = end_of_generation
        self.n_predict = n_predict
        self.keep = keep
        self.on_overflow = on_overflow
        self.cache_prompt = cache_prompt
        self.scores = scores
        self.tokens = list(generation.prompt_ids)
        self.n_computed = 0
        self.blocks: list[Block] = []
        self.slot = -1  # row of the block tables, while running
        self.number = 0  # its place in the order of arrival
        self.leader: Sequence | None = None
        self.n_shared = 0
        self.n_seen = 0  # tokens of the prompt that are counted as computed or found; some may be computed again
        self.started = 0.0  # seconds, when its prompt began to be computed
        self.prompt_done = 0.0

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_computed

    @property
    def n_needed(self) -> int:
        """Blocks for all its tokens and the next one, less those that come from its leader."""
        return -(-(len(self.tokens) + 1) // KV_BLOCK_TOKENS) - (self.n_shared // KV_BLOCK_TOKENS if self.leader else 0)

    @property
    def unscored(self) -> range:
        """Positions of its prompt whose logits are still wanted."""
        return range(len(self.scores.found), len(self.scores.found) + self.scores.n_left) if self.scores else range(0)

    def seen(self) -> int:
        """How many tokens of the prompt came to be there since the last call; none once the prompt is through."""
        n = 0 if self.prompt_done else max(0, self.n_computed - self.n_seen)
        self.n_seen += n
        return n

    def advance(self, n: int, pool: BlockPool) -> bool:
        """n more tokens are computed: blocks they filled can be shared from now on. True when another took the place of one of them."""
        before, self.n_computed = self.n_computed, self.n_computed + n
        replaced = False
        for index in range(before // KV_BLOCK_TOKENS, self.n_computed // KV_BLOCK_TOKENS):
            block = pool.publish(self.blocks[index], self._tokens_of(index))
            if block is not self.blocks[index]:
                replaced = True
                self.blocks[index] = block
                if index + 1 < len(self.blocks):
                    self.blocks[index + 1].parent = block
        return replaced

    def drop_blocks(self, pool: BlockPool) -> None:
        """Give all blocks back; what they hold stays cached, the begun last one too."""
        last = self.n_computed // KV_BLOCK_TOKENS
        if self.n_computed % KV_BLOCK_TOKENS:
            self.blocks[last] = pool.publish(self.blocks[last], self._tokens_of(last))
        for block in reversed(self.blocks):
            pool.release(block)
        self.blocks, self.n_computed = [], 0

    def shift(self, pool: BlockPool) -> int:
        """Make room: drop half of the tokens after the first `keep`; returns how many. The rest is computed again where it moved."""
        self.drop_blocks(pool)
        n_drop = max(1, (len(self.tokens) - self.keep) // 2)
        del self.tokens[self.keep : self.keep + n_drop]
        return n_drop

    def _tokens_of(self, index: int) -> tuple[int, ...]:
        return tuple(self.tokens[index * KV_BLOCK_TOKENS : min(self.n_computed, (index + 1) * KV_BLOCK_TOKENS)])
