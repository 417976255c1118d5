"""Arenas: two buffers that are needed at the same step never share a byte, and the arena ends where the last one does."""

from hypothesis import given
from hypothesis import strategies as st

from ggrun.plan.arena import ALIGN, Span, pack

SPAN = st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 30))


@given(st.lists(SPAN, max_size=40))
def test_no_overlap(raw: list[tuple[int, int, int]]) -> None:
    items = [Span(str(i), n, min(a, b), max(a, b)) for i, (n, a, b) in enumerate(raw)]
    offsets, size = pack(items)
    assert offsets.keys() == {s.name for s in items}
    for s in items:
        assert offsets[s.name] % ALIGN == 0
        assert offsets[s.name] + s.n_bytes <= size
        for t in items:
            if s is not t and s.first <= t.last and t.first <= s.last and s.n_bytes and t.n_bytes:
                a, b = offsets[s.name], offsets[t.name]
                assert a + s.n_bytes <= b or b + t.n_bytes <= a
    assert size <= sum(-(-s.n_bytes // ALIGN) * ALIGN for s in items)


def test_lifetimes_that_do_not_meet_share_bytes() -> None:
    offsets, size = pack([Span("a", 100, 0, 1), Span("b", 100, 2, 3), Span("c", 100, 1, 2)])
    assert offsets["a"] == offsets["b"] != offsets["c"]
    assert size == 256
