"""Log probabilities of an answer's tokens, handed out together with the text they became.

Knows token ids and bytes; must not know how any API writes them.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from ggrun.engine.generation import TokenEvent
from ggrun.server.task import TokenLog

if TYPE_CHECKING:
    from ggrun.engine.generation import Generation
    from ggrun.text import Tokenizer


class TokenLogs:
    """Keeps what is known of each token until the text it is part of is shown.

    n_top: likeliest tokens beside each. special: special tokens are shown, all of them; shown: these.
    """

    def __init__(self, tokenizer: Tokenizer, n_top: int, special: bool, shown: Container[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._n_top = n_top
        self._special = special
        self._shown = shown
        self._held: list[TokenLog] = []

    def add(self, event: TokenEvent) -> None:
        """Note a token that came."""
        if self._n_top >= 0 and event.id is not None:
            top = tuple(self._log(id_, logprob, True) for id_, logprob in event.top[: self._n_top])
            self._held.append(self._log(event.id, event.logprob, self._special or event.id in self._shown, top))

    def take(self, text: str) -> tuple[TokenLog, ...]:
        """The tokens that `text` was made of. Those before them, of which nothing is shown (markup), are forgotten."""
        if not self._held or not text:
            return ()
        start, end = _run(self._held, text.encode())
        taken = tuple(self._held[start:end])
        del self._held[:end]
        return taken

    def rest(self) -> tuple[TokenLog, ...]:
        """All that is left, at the end of an answer that shows every token."""
        taken, self._held = tuple(self._held), []
        return taken

    def _log(self, id_: int, logprob: float, special: bool, top: tuple[TokenLog, ...] = ()) -> TokenLog:
        tokenizer = self._tokenizer
        raw = b"" if tokenizer.is_special(id_) and not special else tokenizer.token_bytes(id_)
        return TokenLog(id_, raw.decode("utf-8", "replace"), raw, max(logprob, -9999.0), top)


def prompt_logs(tokenizer: Tokenizer, generation: Generation, n_top: int) -> tuple[TokenLog, ...]:
    """A prompt's tokens, of a generation that was asked to tell them; special ones in their spelling.

    Nothing is known of the first, as it follows nothing: its log probability is 0, and nothing stands beside it.
    """
    logs = TokenLogs(tokenizer, n_top, special=True)
    logs.add(TokenEvent(generation.prompt_ids[0], "", 0.0))
    for token in generation.prompt_scores:
        logs.add(TokenEvent(token.id, "", token.logprob, token.top))
    return logs.rest()


def _run(held: Sequence[TokenLog], text: bytes) -> tuple[int, int]:
    """First and last token, exclusive, of the earliest run that spells the text; all of them where none does exactly.

    None does when a token is shown in part: a stop word began inside it, or a character is unfinished.
    """
    for start in range(len(held)):
        spelled = b""
        for end in range(start, len(held)):
            spelled += held[end].bytes
            if spelled == text or spelled.removeprefix(b" ") == text:
                return start, end + 1
            if len(spelled) > len(text) + 1:
                break
    return 0, len(held)
