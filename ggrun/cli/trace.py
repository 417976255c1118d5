"""`ggrun trace`: every buffer of the CPU executor beside the NumPy reference's; for whoever adds a model, an op or a kernel."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ggrun.cli.options import JsonFlag, ModelArgument, ModelFlag


def trace(
    model: ModelArgument = None,
    *,
    model_flag: ModelFlag = None,
    tokens: Annotated[str | None, typer.Option("--tokens", metavar="1,2,3|FILE.npy", help="the ids to run", show_default=False)] = None,
    prompt: Annotated[str, typer.Option("-p", "--prompt", metavar="TEXT", help="a text to run instead")] = "The quick brown fox",
    program: Annotated[bool, typer.Option("--program", help="only print what the model computes, op by op")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Compare every buffer of an executor with the reference, op by op."""
    from ggrun.cli.logits import token_ids
    from ggrun.cli.opening import chosen
    from ggrun.cli.screen import Screen
    from ggrun.engine.loading import Options, plan_model
    from ggrun.engine.trace import trace as rows_of
    from ggrun.program.dump import dump
    from ggrun.text import load_tokenizer

    screen = Screen()
    path = chosen(model, model_flag, screen).path
    planned = plan_model(path, Options(n_ctx=32))
    try:
        if program:
            for text in dump(planned.program):
                print(text)
            return
        ids = token_ids(tokens).tolist() if tokens else load_tokenizer(planned.file.metadata).encode(prompt)
    finally:
        planned.file.close()
    worst = 0.0
    with screen.progress() as progress:
        rows = list(rows_of(path, ids, progress))
    if json_output:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'unit':20} {'op':14} {'buffer':28} {'shape':>14} {'nmse':>10} {'max |d|':>10}")
    for row in rows:
        worst = max(worst, row.nmse)
        shape = f"{row.shape[0]} x {row.shape[1]}"
        print(f"{row.unit:20} {row.kind:14} {row.buffer:28} {shape:>14} {row.nmse:10.2e} {row.max_abs:10.2e}")
    print(f"{len(rows)} buffers, {len(ids)} tokens; the largest nmse is {worst:.2e}")
