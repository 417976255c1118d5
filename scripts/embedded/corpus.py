"""The facts the embedded model learns: one item for each name of the standard library, with a signature and one sentence.

Knows: how docstrings of the interpreter at hand look, and the hand-made sentences in texts/. Must not know: how questions are phrased.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import tomllib
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"
MAX_TEXT, MAX_SIGNATURE = 150, 52
OTHER_MEMBERS = 12  # functions and classes kept of a module outside the core: few facts learned well beat many learned badly

WORDS: dict[str, list[str]] = {
    key: text.split() for key, text in tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8")).items()
}
CORE_MODULES, OTHER_MODULES = WORDS["core_modules"], WORDS["other_modules"]
CLASSES_WITH_METHODS = frozenset(WORDS["classes_with_methods"])
# Modules that re-export what lives elsewhere, so that an object's __module__ says nothing.
REEXPORTING = frozenset(["os.path", "builtins", "os", "socket", "math", "sys", "time"])
# Real but rarely asked about; leaving them out leaves room for the rest.
RARE = re.compile(
    r"os\.(W[A-Z]|posix_|sched_|set[reug]|getre|spawn|exec|eventfd|major|minor|makedev|mk(fifo|nod)|p?readv?$|p?writev?$|splice|tc|fork|login_|getxattr)"
    r"|operator\.i[a-z]+$|typing\.(Async|Mutable|Abstract|Coll|Cor|Deque|Default|Frozen|Has|Key|Items|Val|Mapp|Rev|Sized|Supp|Bin|TextIO|IO)"
    r"|asyncio\.(Abstract|Base|Datagram|Pid|Safe|Thread|Fast|Multi|Sub|Streams?R|Streams?W|_)|ast\.[A-Z]|logging\.(Buffering|Perc|Str)|unittest\.[a-z]"
)
NOT_NAMES = frozenset(["copyright", "credits", "license", "quit", "exit", "help"])


@dataclass(frozen=True, slots=True)
class Item:
    """One fact: `name` is fully qualified, `kind` one of module, class, exception, function, method, constant."""

    name: str
    kind: str
    module: str
    text: str
    signature: str
    weight: float
    members: tuple[str, ...] = ()

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def owner(self) -> str:
        """The module or class the name is looked up in (`builtins` for a bare name)."""
        return self.name.rpartition(".")[0] or self.module

    def answer(self) -> str:
        if self.kind == "module":
            return f"{self.name} is a module. {self.text}" + (f" It has {', '.join(self.members)}." if self.members else "")
        if self.kind in ("exception", "constant") or (self.kind == "class" and self.last[0].isupper()):
            article = "an" if self.kind == "exception" else "a"
            return f"{self.name}{self.signature} is {article} {self.kind}. {self.text}"
        return f"{self.name}{self.signature}: {self.text}"


def _strip_signature(paragraph: str, last: str) -> tuple[str, str]:
    """(signature, rest) of a C docstring's paragraph that opens with `name(args) -> result: rest`."""
    signature = ""
    pattern = (
        rf"^(?:[A-Za-z_]\w*\.)*{re.escape(last)}\s*(\([^)]*\))(?:\s*-+>\s*[\w .,\[\]]{{1,40}}?)?(?:\s*(?:--|:|\.)\s*|\s+(?=[A-Z])|$)(.*)$"
    )
    while match := re.match(pattern, paragraph):
        signature, paragraph = signature or match.group(1), match.group(2).strip()
    return signature, paragraph


def _first_sentence(text: str) -> str | None:
    """The first sentence, shortened only where what stays is still a sentence; None when that cannot be done."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z(\"'*>-])", text)
    sentence = parts[0]
    if re.search(r"\b(e\.g|i\.e|vs|etc|cf)\.$", sentence) and len(parts) > 1:
        sentence += " " + parts[1]
    if len(sentence) > MAX_TEXT:
        cuts = [m.start() for m in re.finditer(r"; |, (?:which|where|so|but|using|if|and|or|with|such)\b| \(| -- | such as ", sentence)]
        cuts = [cut for cut in cuts if 30 < cut <= MAX_TEXT]
        if not cuts:
            return None
        sentence = sentence[: cuts[-1]]
    sentence = re.sub(r"\s*(--|[:;,])?\s*$", "", sentence)
    if len(sentence) < 12 or sentence.count("(") != sentence.count(")") or sentence.count('"') % 2 or sentence.startswith((">", "<")):
        return None
    if not re.match(r"^\w+[._(]", sentence):
        sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence[-1] in ".!?" else sentence + "."


def describe(doc: object, name: str) -> tuple[str | None, str]:
    """(one sentence or None, signature or "") of a docstring."""
    if not isinstance(doc, str) or not doc:
        return None, ""
    paragraphs = [re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", inspect.cleandoc(doc))]
    last, signature = name.rpartition(".")[2], ""
    for paragraph in [p for p in paragraphs if p and not set(p) <= set("-=~* ")][:3]:
        found, rest = _strip_signature(paragraph, last)
        signature = signature or found
        rest = re.sub(r":(?:func|class|meth|mod|data|exc|attr|ref|term|const):`~?([^`]*)`", r"\1", rest).replace("`", "")
        if not rest or re.match(r"^\w+\.py\b|^Copyright|^\$Id|^Author", rest):
            continue
        return (_first_sentence(rest) if rest.isascii() else None), signature
    return None, signature


def signature_of(obj: object, drop_self: bool) -> str:
    """The signature as text with short defaults, or "" when the object has none."""
    try:
        parameters = list(inspect.signature(obj).parameters.values())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    if drop_self and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    shown: list[str] = []
    starred = False
    for p in parameters:
        value = repr(p.default)
        default = "" if p.default is p.empty else "=" + (value if len(value) <= 10 and "<" not in value else "...")
        if p.kind is p.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        shown.append(prefix + p.name + default)
    return "(" + ", ".join(shown) + ")"


def shorten_signature(signature: str) -> str:
    if signature.startswith(("(*args", "(value, names=")):  # generic wrappers: says nothing about the call
        return ""
    if len(signature) <= MAX_SIGNATURE:
        return signature
    head = signature[:MAX_SIGNATURE]
    return head[: head.rfind(",")] + ", ...)" if "," in head else "(...)"


def hand_made() -> dict[str, tuple[str, str]]:
    """name -> (signature, text) of the sentences in texts/."""
    table: dict[str, tuple[str, str]] = {}
    for path in sorted(TEXTS.glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                match = re.match(r"^([\w.]+)(\(.*?\))?: (.*)$", line)
                assert match, f"{path.name}: not `name(signature): text`: {line}"
                table[match.group(1)] = (match.group(2) or "", match.group(3))
    return table


def resolve(name: str) -> tuple[str, object]:
    """(module name, object) a dotted name stands for; raises LookupError when the interpreter has no such name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        obj: object = module
        for part in parts[cut:]:
            obj = getattr(obj, part, None)
        if obj is not None:
            return ".".join(parts[:cut]), obj
    obj = builtins
    for part in parts:
        obj = getattr(obj, part, None)
    if obj is None:
        raise LookupError(name)
    return "builtins", obj


def kind_of(name: str, obj: object, module: str) -> str:
    if isinstance(obj, types.ModuleType):
        return "module"
    if inspect.isclass(obj):
        return "exception" if issubclass(obj, BaseException) else "class"
    if not callable(obj):
        return "constant"
    depth = name.count(".") - (0 if module == "builtins" else module.count(".") + 1)
    return "method" if depth else "function"


def _candidates(module: str) -> Iterator[tuple[str, str, object, object]]:
    """(name, kind, object, docstring) of everything public in one module."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    prefix = "" if module == "builtins" else module + "."
    yield module, "module", loaded, loaded.__doc__
    for name in names or [key for key in vars(loaded) if not key.startswith("_")]:
        obj = getattr(loaded, name, None)
        if obj is None or isinstance(obj, types.ModuleType) or name in NOT_NAMES or not callable(obj):
            continue
        home = getattr(obj, "__module__", None)
        if names is None and isinstance(home, str) and module not in REEXPORTING and home.split(".")[0].lstrip("_") != module.split(".")[0]:
            continue
        full = prefix + name
        kind = kind_of(full, obj, module)
        yield full, kind, obj, obj.__doc__ if inspect.isclass(obj) else inspect.getdoc(obj)
        if full in CLASSES_WITH_METHODS:
            for key, value in sorted(vars(obj).items()):
                if not key.startswith("_") and callable(getattr(obj, key, None)):
                    bound = getattr(obj, key)
                    yield (
                        f"{full}.{key}",
                        "static" if isinstance(value, (staticmethod, classmethod)) else "method",
                        bound,
                        inspect.getdoc(bound),
                    )


def build_items() -> list[Item]:
    """Every item, hand-made sentences first, in a fixed order."""
    warnings.simplefilter("ignore")
    written, items = hand_made(), {}
    public: dict[str, list[str]] = {}
    for module in CORE_MODULES + OTHER_MODULES:
        core = module in CORE_MODULES
        for name, kind, obj, doc in _candidates(module):
            text, doc_signature = describe(doc, name)
            signature = signature_of(obj, kind == "method") or doc_signature if kind not in ("exception", "module") else ""
            kind = "method" if kind == "static" else kind
            if kind in ("function", "class"):
                public.setdefault(module, []).append(name.removeprefix(module + "."))
            crowded = not core and kind in ("function", "class") and public[module].index(name.removeprefix(module + ".")) >= OTHER_MEMBERS
            dropped = (
                crowded or RARE.match(name) or name in written or name in items or name == "builtins" or (kind == "exception" and not core)
            )
            if text and not dropped:
                items[name] = Item(name, kind, module, text, shorten_signature(signature), 1.5 if core else 0.8)
    for name, (signature, text) in written.items():
        module, obj = resolve(name)
        items[name] = Item(name, kind_of(name, obj, module), module, text, signature, 3.5)
    for name, item in items.items():
        if item.kind == "module":
            names = sorted(public.get(name, []), key=lambda key: (f"{name}.{key}" not in written, not key[0].islower()))
            items[name] = Item(name, "module", name, item.text, "", item.weight, tuple(names[:4]))
    return [items[name] for name in sorted(items)]


def all_public_names() -> frozenset[str]:
    """Every dotted name of the listed modules and their classes, also those without an item: no made-up name may be one of them."""
    names: set[str] = set()
    for module in CORE_MODULES + OTHER_MODULES:
        loaded = importlib.import_module(module)
        prefix = "" if module == "builtins" else module + "."
        names.add(module)
        for key in dir(loaded):
            names.add(prefix + key)
            obj = getattr(loaded, key, None)
            if inspect.isclass(obj):
                names.update(f"{prefix}{key}.{member}" for member in dir(obj))
    return frozenset(names)
