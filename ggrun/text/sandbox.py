"""Renders a Jinja template that may be hostile: no access to Python, and bounded steps, time, memory, recursion and output.

Knows Jinja; must not know what a chat is. Jinja's own sandbox guards attributes and `range`. Here every template is rewritten when it is
parsed so that loops, calls, comparisons, joins, slices and literals pass through a Budget, and no value may grow past its limit: a
template then stops with a sentence instead of filling the memory, whatever it computes.
"""

from __future__ import annotations

import functools
import json
import operator
import re
import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from datetime import datetime
from time import monotonic
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.runtime import Macro
from jinja2.sandbox import SandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ggrun.text.error import TextError

MAX_SOURCE: Final = 1 << 20  # characters of a template
MAX_OUTPUT: Final = 4 << 20  # characters of a rendered chat beyond what went in
MAX_VALUE: Final = 4 << 20  # characters of any one value, beyond twice what went in
MAX_TOTAL: Final = 128 << 20  # of all values ever made
MAX_STEPS: Final = 1_000_000
MAX_SECONDS: Final = 5.0
_MAX_WIDTH: Final = 100_000
_ELEMENT: Final = 16  # characters that an element of a list counts for

FILTERS: Final = (
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "striptags", "sum", "title", "trim",
    "truncate", "unique", "upper", "urlencode", "wordcount",
)  # fmt: skip
_BINARY: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod,
    "**": operator.pow,
}  # fmt: skip


class LimitExceeded(Exception):
    """A template used more than it may."""


class Refused(Exception):
    """The template itself called raise_exception, with this message."""


class Budget:
    """What one rendering may still use. `given`: size of the values that went in."""

    def __init__(self, given: int, seconds: float = MAX_SECONDS) -> None:
        self.max_value = MAX_VALUE + 2 * given
        self.max_output = MAX_OUTPUT + given
        self._total = MAX_TOTAL + 16 * given
        self._steps = MAX_STEPS + given // 16
        self._end = monotonic() + seconds

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0 or monotonic() > self._end:
            raise LimitExceeded("it runs too long")

    def spend(self, size: int) -> None:
        """Account for a value of `size` that is made, or about to be."""
        self._total -= size
        if size > self.max_value or self._total < 0:
            raise LimitExceeded("it builds too much text")

    def check(self, value: Any) -> None:
        """A step that looks at all of `value`, which may have grown since it was made."""
        self.step()
        if size_of(value, self.max_value) > self.max_value:
            raise LimitExceeded("it builds too much text")

    def pay(self, value: Any) -> Any:
        """`value`, after a step and its size are accounted for."""
        self.step()
        self.spend(size_of(value, self.max_value))
        return value


class _Active(threading.local):
    budget: Budget = Budget(0, seconds=-1.0)  # outside of a rendering nothing may run


_active = _Active()


def size_of(value: Any, limit: int) -> int:
    """Characters of `value` written out in full, shared parts counted every time; stops soon after `limit`."""
    if isinstance(value, (str, bytes)):
        return len(value)
    size, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (str, bytes)):
            size += len(item)
        elif isinstance(item, Mapping):
            size += 2 * _ELEMENT * len(item)
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, Namespace):
            stack.append(object.__getattribute__(item, "_Namespace__attrs"))
        elif isinstance(item, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
            size += _ELEMENT * len(item)
            stack.extend(item)
        elif isinstance(item, int):
            size += item.bit_length() // 3
        if size + len(stack) > limit:
            return size + len(stack)
    return size


class _Counted:
    """An iterable whose every item is a step; weight: characters of plain text that each round of the loop writes."""

    def __init__(self, items: Any, weight: int) -> None:
        self._items = items if hasattr(items, "__len__") else list(_stepping(items))
        self._weight = weight

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _active.budget.step()
            _active.budget.spend(self._weight)
            yield item


def _stepping(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _active.budget.step()
        yield item


def _concat(first: Any, *others: Any) -> str:
    parts = [first, *others]
    _active.budget.spend(size_of(parts, _active.budget.max_value))
    return "".join(map(str, parts))


def _slice(value: Any, *bounds: Any) -> Any:
    return _active.budget.pay(value[slice(*bounds)])


def _pay(value: Any) -> Any:
    return _active.budget.pay(value)


def _tick(value: Any) -> Any:
    _active.budget.check(value)
    return value


class _Metered(NodeTransformer):
    """Sends what could grow or take long through the filters below."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        weight = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filter(node.iter, "_counted", nodes.Const(weight))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node.nodes[0], "_concat", *node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter(node.node, "_slice", *(bound or nodes.Const(None) for bound in bounds))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, "_tick")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_pay") if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_pay") if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_pay") if node.ctx == "load" and node.items else node


def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class GenerationTag(Extension):
    """{% generation %} marks what a model wrote, for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's interface

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Environment(SandboxedEnvironment):
    """The one environment chat templates are compiled in, with the helpers they expect. They may change lists and dicts they are given."""

    intercepted_binops = frozenset(_BINARY)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_finalize, extensions=[LoopControlExtension, GenerationTag]
        )
        known = self.filters
        self.filters = {name: _guarded(name, known[name]) for name in FILTERS}
        self.filters |= {"tojson": _guarded("tojson", _to_json), "from_json": _guarded("from_json", json.loads)}
        self.filters |= {"_counted": _Counted, "_concat": _concat, "_slice": _slice, "_pay": _pay, "_tick": _tick}
        self.globals.pop("lipsum")
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.policies["json.dumps_kwargs"] = {}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _Metered().visit(template)
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _active.budget
        limit = budget.max_value
        if operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(count, int) and not isinstance(value, (int, float)):
                    budget.spend(min(max(count, 0), limit + 1) * size_of(value, limit))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "**" and isinstance(right, int) and isinstance(left, int) and abs(right) * left.bit_length() > 4096:
            raise LimitExceeded("it computes with very long numbers")
        elif operator == "+":
            budget.spend(size_of(left, limit) + size_of(right, limit))
        return budget.pay(_BINARY[operator](left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _active.budget
        budget.step()
        if isinstance(obj, Macro):
            budget.spend(MAX_SOURCE >> 10)
        elif isinstance(owner := getattr(getattr(obj, "__wrapped__", obj), "__self__", None), (str, bytes, int)):
            _check_method(owner, getattr(obj, "__name__", ""), args)
        elif isinstance(owner, (list, dict)):
            budget.pay([args, kwargs])  # what is put into it
        return budget.pay(super().call(context, obj, *args, **kwargs))


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    """Before a method of a string or number runs: could its result be huge?"""
    budget = _active.budget
    if any(isinstance(arg, int) and abs(arg) > _MAX_WIDTH for arg in args) or name in ("translate", "maketrans"):
        raise LimitExceeded(f"it calls {name}() with {args!r:.60}")
    if name == "replace" and len(args) >= 2:
        _check_replace(owner, args[0], args[1])
    elif name == "join" and args:
        items = args[0] if hasattr(args[0], "__len__") else ()
        budget.spend(size_of(items, budget.max_value) + len(owner) * len(items))
    elif name in ("format", "format_map"):
        _check_format(owner, args, "{")


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str) and isinstance(old, str):
        _active.budget.spend(len(text) + text.count(old) * len(str(new)))


def _check_format(pattern: str, values: Any, mark: str = "%") -> None:
    if re.search(r"\d{5}|\*", pattern):
        raise LimitExceeded("it formats to an extreme width")
    _active.budget.spend(pattern.count(mark) * size_of(values, _active.budget.max_value))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose argument sizes are checked before and whose result is paid for after."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = _active.budget
        skip = 2 if hasattr(function, "jinja_pass_arg") else 1  # the context, if any, and the value that is filtered
        value, options = args[skip - 1], [*args[skip:], *kwargs.values()]
        budget.check(value)
        if name not in ("default", "d", "from_json") and any(isinstance(o, int) and abs(o) > _MAX_WIDTH for o in options):
            raise LimitExceeded(f"it filters by {name} with {options!r:.60}")
        if name == "join":
            value = list(_stepping(value))
            args = (*args[: skip - 1], value, *args[skip:])
            budget.spend(size_of(value, budget.max_value) + len(value) * sum(len(str(o)) for o in options))
        elif name == "replace" and len(options) >= 2:
            _check_replace(str(value), options[0], options[1])
        elif name == "indent":
            budget.spend(str(value).count("\n") * sum(o if isinstance(o, int) else len(str(o)) for o in options))
        elif name == "format":
            _check_format(str(value), options)
        elif name == "sum" and any(not isinstance(o, (int, float, str)) for o in options):
            raise LimitExceeded("it sums what are not numbers")
        return budget.pay(function(*args, **kwargs))

    return guarded


@pass_context  # so that Jinja never evaluates an expression while compiling
def _finalize(context: Any, value: Any) -> Any:
    return _active.budget.pay(value)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, separators: Any = None, sort_keys: bool = False) -> str:
    """JSON as models were trained on it: HTML is not escaped, and text stays as it is."""
    _active.budget.spend(size_of(value, _active.budget.max_value) * (1 + (indent or 0)))
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> NoReturn:
    raise Refused(str(message)[:1000])


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(str(format)[:100])


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment()


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> Any:
    """The compiled template. TextError for one that is no Jinja, or is too long or too deep."""
    if len(source) > MAX_SOURCE:
        raise TextError(f"the chat template has {len(source)} characters; ggrun accepts up to {MAX_SOURCE}")
    try:
        return _environment().from_string(source)
    except TemplateError as error:
        line = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
        raise TextError(f"the chat template is not valid Jinja: {error}{line}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise TextError(f"the chat template cannot be compiled: {_reason(error)}") from error


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The template's text. TextError for a limit exceeded or a mistake in the template; Refused when it calls raise_exception."""
    template = compile_template(source)
    budget = Budget(size_of(dict(variables), 1 << 40))
    outer, _active.budget = _active.budget, budget
    try:
        pieces, size = [], 0
        for piece in template.generate(**variables):
            pieces.append(piece)
            size += len(piece)
            if size > budget.max_output:
                raise LimitExceeded("it writes too much text")
        return "".join(pieces)
    except LimitExceeded as error:
        raise TextError(f"the chat template was stopped: {error}") from error
    except SecurityError as error:
        raise TextError(f"the chat template was stopped: it tries to reach what templates may not ({error})") from error
    except Refused:
        raise
    except Exception as error:  # whatever an expression of a stranger's template may raise
        raise TextError(f"the chat template failed: {_reason(error)}") from error
    finally:
        _active.budget = outer


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    return f"{error or type(error).__name__}"[:500]
