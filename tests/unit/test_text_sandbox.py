"""Hostile templates are stopped with a sentence: none may hang, fill the memory or reach Python."""

import pytest

from ggrun.text import TextError, sandbox
from ggrun.text.sandbox import Refused, render

BIG = "{% set x = 'a' * 1000000 %}"
GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}"
BOMBS = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "nested loops that write": "{% for a in range(100000) %}{% for b in range(100000) %}xxxxxxxxxx{% endfor %}{% endfor %}",
    "doubling by ~": GROW % ("'aa'", "ns.x ~ ns.x"),
    "doubling by +": GROW % ("'aa'", "ns.x + ns.x"),
    "doubling lists": GROW % ("[1]", "ns.x + ns.x"),
    "a tower of lists": GROW % ("['a']", "[ns.x, ns.x]"),
    "a tower of tuples": GROW % ("('a', 1)", "(ns.x, ns.x)"),
    "a tower of dicts": GROW % ("{'a': 1}", "{'a': ns.x, 'b': ns.x}"),
    "a tower by dict()": GROW % ("{'a': 1}", "dict(a=ns.x, b=ns.x)"),
    "a tower of namespaces": GROW % ("'a'", "namespace(a=ns.x, b=ns.x)"),
    "a tower of views": GROW % ("{'a': 1}", "{'a': [ns.x.items(), ns.x.values()]}"),
    "a tower of appends": "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set y = [] %}{% set _ = y.append(ns.x) %}"
    "{% set _ = y.append(ns.x) %}{% set ns.x = y %}{% endfor %}{{ ns.x }}",
    "a list that extends itself": "{% set x = [1] %}{% for i in range(60) %}{% set _ = x.extend(x) %}{% endfor %}",
    "a tower filled later": "{% set a = [] %}{% set b = [] %}{% set n = namespace(a=a, b=b) %}{% for i in range(12) %}"
    "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{% set _ = a.append('x' * 1000000) %}"
    "{% set _ = b.append('x' * 999999 ~ 'x') %}{{ n.a == n.b }}",
    "sorting a tower": "{% set a = [] %}{% set n = namespace(a=a) %}{% for i in range(12) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
    "{% set _ = a.append('x' * 1000000) %}{{ n.a|sort }}",
    "repeated text": "{{ 'a' * 10000000000 }}",
    "repeated lists": "{{ [0] * 10000000000 }}",
    "huge powers": "{{ (10 ** 1000) ** 1000 }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "% width": "{{ '%1000000000d' % 1 }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "many fields": BIG + "{{ ('{0}' * 1000).format(x) }}",
    "endless recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "wide recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "text set in a loop": BIG + "{% set y %}{% for i in range(100000) %}{{ x }}{% endfor %}{% endset %}",
    "join": BIG + "{{ ','.join([x] * 100000) }}",
    "join filter": BIG + "{{ range(10000)|join(x) }}",
    "replace": BIG + "{{ x.replace('a', x) }}",
    "replace filter": BIG + "{{ x|replace('a', x) }}",
    "replace by map": BIG + "{{ [x]|map('replace', 'a', x)|list }}",
    "indent": "{% set x = '\\n' * 1000000 %}{{ x|indent(99999) }}",
    "kept slices": BIG + "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + [x[i:]] %}{% endfor %}",
    "batch": "{{ [1]|batch(1000000000, 0)|list }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "round": "{{ 1.5|round(1000000000, 'ceil') }}",
    "sum of lists": "{{ ([[1]] * 100000)|sum(start=[]) }}",
    "json indent": "{{ [[1]]|tojson(indent=1000000000) }}",
    "split": BIG + "{% for i in range(100000) %}{% set y = x.split('a') %}{% endfor %}",
    "call blocks": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call m() %}" * 40 + "x" + "{% endcall %}" * 40,
    "long output": BIG + "{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}",
}


@pytest.fixture(autouse=True)
def _less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_STEPS", 100_000)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped(name: str) -> None:
    with pytest.raises(TextError, match="the chat template (was stopped|failed: it nests too deeply)"):
        render(BOMBS[name], {})


def test_time_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.Budget.__init__, "__defaults__", (0.05,))
    template = (
        "{% set x = 'a' * 2000000 %}{% set y = 'a' * 1999999 ~ 'a' %}{% for i in range(90000) %}{% if x == y %}{% endif %}{% endfor %}"
    )
    with pytest.raises(TextError, match="runs too long"):
        render(template, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ render.__globals__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_python_is_out_of_reach(template: str) -> None:
    try:
        assert render(template, {"messages": [1], "render": render}) == ""
    except TextError as error:
        assert "the chat template" in str(error)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for", "not valid Jinja"),
        ("a\n{% nonsense %}", "line 2"),
        ("{{ x|nonsense }}", "nonsense"),
        ("{{ 'a'|pprint }}", "pprint"),
        ("{{ '" + "(" * 5000 + "' }}" + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nests too deeply"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "cannot be compiled"),
        ("x" * (sandbox.MAX_SOURCE + 1), "characters"),
    ],
)
def test_what_is_no_template_is_refused(template: str, words: str) -> None:
    with pytest.raises(TextError, match=words):
        sandbox.compile_template(template)


@pytest.mark.parametrize(
    ("template", "words"),
    [("{{ 1 / 0 }}", "division"), ("{{ x.y.z }}", "undefined"), ("{% include 'x' %}", "loader"), ("{{ 'a' + 1 }}", "str")],
)
def test_mistakes_are_told(template: str, words: str) -> None:
    with pytest.raises(TextError, match=f"the chat template failed: .*{words}"):
        render(template, {})


def test_the_templates_own_words_reach_the_caller() -> None:
    with pytest.raises(Refused, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", {})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ {'a': '<b> & \\'é\\''}|tojson }}", """{"a": "<b> & 'é'"}"""),
        ("{{ [1, 2]|tojson(indent=2) }}", "[\n  1,\n  2\n]"),
        ("{{ 'é'|tojson(ensure_ascii=True) }}", '"\\u00e9"'),
        ("{{ [1]|tojson(separators=(',', ':')) }}", "[1]"),
        ("{{ ('[1, 2]'|from_json)[1] }}", "2"),
        ("{% generation %}x{{ 1 }}{% endgeneration %}y", "x1y"),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "013"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2, 3] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "6"),
        ("{% for a, b in {'x': 1}|items %}{{ loop.last }}{{ loop.length }}{{ a ~ b }}{% endfor %}", "True1x1"),
        ("{{ 'abcdef'[1:-1:2] ~ [1, 2, 3][::-1]|string }}", "bd[3, 2, 1]"),
        ("{% for c in 'ab' %}{{ loop.previtem }}{{ c }}{{ loop.nextitem }};{% endfor %}", "ab;ab;"),
        ("{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() }}{% endmacro %}{% call m(1) %}c{% endcall %}", "12c"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{{ [3, 1, 2]|sort|join('-') }} {{ [{'a': 1}, {'a': 2}]|selectattr('a', 'equalto', 2)|map(attribute='a')|list }}", "1-2-3 [2]"),
        ("{{ '%s is %d' % ('a', 3) }} {{ '{} {b}'.format(1, b=2) }} {{ 'x' * 3 }} {{ 2 ** 10 }}", "a is 3 1 2 xxx 1024"),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{% set x = [] %}{% set _ = x.append(1) %}{% set d = {} %}{% set _ = d.update({'a': x}) %}{{ d }}", "{'a': [1]}"),
        ("{{ nothing is defined }}{{ nothing or 'x' }}", "Falsex"),
    ],
)
def test_what_templates_rely_on(template: str, text: str) -> None:
    assert render(template, {}) == text


def test_large_conversations_are_not_bombs() -> None:
    messages = [{"content": "word " * 200_000} for _ in range(5)]
    template = "{% set ns = namespace(t='') %}{% for m in messages[:] %}{% set ns.t = ns.t ~ m.content|trim %}{% endfor %}{{ ns.t }}"
    assert len(render(template, {"messages": messages})) == 5 * len("word " * 200_000) - 5


def test_a_template_is_compiled_once() -> None:
    assert sandbox.compile_template("{{ 1 }}") is sandbox.compile_template("{{ 1 }}")
