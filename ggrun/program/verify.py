"""Checks a Program's inner consistency before anything is planned from it: a wrong architecture function is named here, not in a kernel."""

from __future__ import annotations

from ggrun.program import params as p
from ggrun.program.kinds import KINDS
from ggrun.program.program import Op, Program, ProgramError


def verify(program: Program) -> Program:
    """Return the program, or raise ProgramError naming the op, buffer or unit that is wrong."""
    written = {name for name, b in program.buffers.items() if b.role == "input"}
    closed: set[str] = set()
    current = ""
    for index, op in enumerate(program.ops):
        where = f"op {index} ({op.kind}, unit {op.unit})"
        _check_signature(program, op, where)
        if op.unit != current:
            _require(op.unit in program.units and op.unit not in closed, f"{where} lies outside its unit's consecutive ops")
            closed.add(current)
            current = op.unit
        for name in op.inputs:
            _require(name in written, f"{where} reads buffer {name} before anything wrote it")
        for name in op.outputs:
            _require(name not in written, f"{where} writes buffer {name} a second time")
            written.add(name)
    outputs = [b for b in program.buffers.values() if b.role == "output"]
    _require(len(outputs) == 1, f"the program has {len(outputs)} outputs, not one")
    _require((outputs[0].rows, outputs[0].width) == ("R", program.n_vocab), "the output is not [R, n_vocab]")
    _require(outputs[0].name in written, "nothing writes the output")
    return program


def _check_signature(program: Program, op: Op, where: str) -> None:
    kind = KINDS.get(op.kind)
    if kind is None:
        raise ProgramError(f"{where}: no such op kind")
    _require(isinstance(op.params, kind.params), f"{where}: parameters are {type(op.params).__name__}, not {kind.params.__name__}")
    _require(len(op.inputs) == len(kind.inputs), f"{where} takes {len(kind.inputs)} inputs, not {len(op.inputs)}")
    _require(len(op.outputs) == len(kind.outputs), f"{where} gives {len(kind.outputs)} outputs, not {len(op.outputs)}")
    needed = sum(not w.endswith("?") for w in kind.weights)
    _require(needed <= len(op.weights) <= len(kind.weights), f"{where} has {len(op.weights)} weights")
    for name in op.inputs + op.outputs:
        _require(name in program.buffers, f"{where} names an unknown buffer {name}")
    for name in op.weights:
        _require(name in program.weights, f"{where} names an unknown weight {name}")
    _check_widths(program, op, where)


def _check_widths(program: Program, op: Op, where: str) -> None:
    """The widths that must agree for each kind of op."""
    x, y = (program.buffers[names[0]] for names in (op.inputs, op.outputs))
    match op.params:
        case p.Linear(bias):
            _require(program.weights[op.weights[0]].dims[:2] == (x.width, y.width), f"{where}: weight and buffer widths differ")
            _require(bias == (len(op.weights) == 2), f"{where}: bias parameter and weights differ")
        case p.RmsNorm(_, groups):
            _require(x.width == y.width == groups * program.weights[op.weights[0]].dims[0], f"{where}: norm width differs")
        case p.Rope() as r:
            _require(x.width == y.width == r.n_heads * r.head_dim, f"{where}: rope width differs")
            _require(0 < r.n_rot <= r.head_dim and r.n_rot % 2 == 0, f"{where}: {r.n_rot} rotated of {r.head_dim} elements")
        case p.Attention() as a:
            q, k, v = (program.buffers[n] for n in op.inputs[:3])
            _require(a.n_head_kv > 0 and a.n_head % a.n_head_kv == 0, f"{where}: {a.n_head} heads over {a.n_head_kv} KV heads")
            widths = (a.n_head * a.head_dim_k, a.n_head_kv * a.head_dim_k, a.n_head_kv * a.head_dim_v, a.n_head * a.head_dim_v)
            _require((q.width, k.width, v.width, y.width) == widths, f"{where}: attention widths differ")
            _require(a.state in program.states and program.states[a.state].unit == op.unit, f"{where}: state {a.state} is of another unit")
        case p.Add() | p.Glu():
            other = program.buffers[op.inputs[1]]
            _require((x.width, x.rows) == (other.width, other.rows) == (y.width, y.rows), f"{where}: operands differ in shape")
        case p.Route() as r:
            _require(x.width == r.n_expert and 0 < r.n_used <= r.n_expert, f"{where}: {r.n_used} of {r.n_expert} experts, {x.width} logits")
        case _:
            pass


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ProgramError(sentence)
