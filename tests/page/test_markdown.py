"""Markdown that grows: drawn in pieces it ends as the whole does, whatever the pieces; and a long answer costs time in proportion."""

import random
from typing import Any

import pytest

from tests.page.driving import Tab

CORPUS = """\
# Title

A paragraph with *emphasis*, `code`, [a link][later] and
a second line{2 spaces}
with a break.

Setext
------

- one
- two
  - inner

    a paragraph in it

      indented code?
- three

1. first
2. second

   ```python
   def inside(): pass
   ```
3. third
not lazy? yes

> quote
> > nested
lazy

```js
const x = `a`; // ``` not the end

  ~~~
```
~~~~text
```
~~~
~~~~

| a | b |
|--:|:-:|
| 1 | `2` |

after | the table

<div>raw

html</div>

* * *

    indented code

    more of it

- [ ] open
- [x] done

Term<br>two &amp; ~~gone~~ <b>bold</b> 5 < 6 and x<y>z

[later]: https://example.org/a "title"

```
never closed
  still code
""".replace("{2 spaces}", "  ")

DRAW = """async ([text, cuts]) => {
    const { MarkdownStream, renderMarkdown } = await import("/static/markdown.js");
    const whole = document.createElement("div"), pieces = document.createElement("div");
    document.body.append(whole, pieces);
    renderMarkdown(whole, text);
    const stream = new MarkdownStream(pieces);
    let from = 0;
    for (const cut of [...cuts, text.length]) { stream.push(text.slice(from, cut)); stream.draw(); from = cut; }
    stream.finish();
    await new Promise((done) => setTimeout(done, 60));
    whole.normalize(); pieces.normalize();
    const result = [whole.outerHTML, whole.isEqualNode(pieces) ? whole.outerHTML : pieces.outerHTML];
    whole.remove(); pieces.remove();
    return result;
}"""


@pytest.mark.parametrize("seed", range(4))
def test_in_pieces_as_in_one(scripted: Any, new_tab: Any, seed: int) -> None:
    tab: Tab = new_tab(scripted.base)
    page = tab.open()
    chance = random.Random(seed)
    page.evaluate(DRAW, ["```python\nx\n```\n```js\nx\n```", []])  # the languages are fetched
    for _ in range(6):
        blocks = CORPUS.split("\n\n")
        text = "\n\n".join(chance.sample(blocks, len(blocks)) if chance.random() < 0.7 else blocks)
        n = chance.choice([3, 40, len(text) // 2])
        cuts = sorted(chance.sample(range(1, len(text)), n))
        whole, pieces = page.evaluate(DRAW, [text, cuts])
        assert pieces == whole, (seed, cuts)


def test_every_character_alone(scripted: Any, new_tab: Any) -> None:
    page = new_tab(scripted.base).open()
    page.evaluate(DRAW, ["```python\nx\n```\n```js\nx\n```", []])
    whole, pieces = page.evaluate(DRAW, [CORPUS, list(range(1, len(CORPUS)))])
    assert pieces == whole


def test_a_long_answer_is_drawn_in_proportion(scripted: Any, new_tab: Any) -> None:
    """Characters handed to the parser, not seconds: a text ten times as long may cost about ten times as much, not a hundred times."""
    page = new_tab(scripted.base).open()
    cost = """async ([text, step]) => {
        const { MarkdownStream } = await import("/static/markdown.js");
        const { Lexer } = await import("/static/vendor/marked.js");
        let read = 0;
        const lex = Lexer.prototype.lex;
        Lexer.prototype.lex = function (text) { read += text.length; return lex.call(this, text); };
        const stream = new MarkdownStream(document.createElement("div"));
        for (let i = 0; i < text.length; i += step) { stream.push(text.slice(i, i + step)); stream.draw(); }
        stream.finish();
        Lexer.prototype.lex = lex;
        return read;
    }"""
    for block in ("Some words of a paragraph that goes on for a while.\n\n", "    x = f(x)  # a line of code\n"):
        start = "```python\n" if "f(x)" in block else ""
        short, long = (page.evaluate(cost, [start + block * n, 12]) for n in (20, 200))
        assert long < 14 * short, (block, short, long)
