"""`ggrun chat`: a conversation at the terminal; what is piped in is one message."""

import sys
from typing import Annotated, Literal

import typer

from ggrun.cli.devices import ListDevicesFlag
from ggrun.cli.options import EngineOptions, JsonFlag, ModelArgument, PromptOptions, SamplingOptions, Switch, flag
from ggrun.cli.output import OutputOptions


def chat(
    model: ModelArgument = None,
    *,
    engine_options: EngineOptions,
    prompt_options: PromptOptions,
    sampling_options: SamplingOptions,
    output_options: OutputOptions,
    single_turn: Annotated[bool, flag("-st", "--single-turn", panel="Prompt", help="answer once, then leave")] = False,
    multiline: Annotated[
        bool, flag("-mli", "--multiline-input", panel="Prompt", help="Enter starts a new line and Alt-Enter sends")
    ] = False,
    on_overflow: Annotated[
        Literal["ask", "stop", "shift"] | None,
        flag(
            "--on-overflow",
            panel="Prompt",
            shown="ask, or stop in a pipe",
            help="when the context is full: ask, stop, or forget the oldest",
        ),
    ] = None,
    color: Annotated[Switch, flag("-co", "--color", panel="Screen", shown="auto", help="colours")] = "auto",
    show_timings: Annotated[
        bool, flag("--show-timings/--no-show-timings", panel="Screen", shown="on", help="a line after each answer")
    ] = True,
    list_devices: ListDevicesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Talk with a model. Without a model's name: with the small one that comes along."""
    from ggrun.cli.choosing import sampling
    from ggrun.cli.conversation import Conversation
    from ggrun.cli.opening import chosen, opened
    from ggrun.cli.output import constraint_of, output_of
    from ggrun.cli.prompt import at_terminal, piped, prompt_of, stops_of, system_of, template_of
    from ggrun.cli.reader import PlainReader, Reader, TerminalReader, history_file
    from ggrun.cli.screen import Screen, Writer
    from ggrun.cli.session import Session
    from ggrun.cli.slash import COMMANDS
    from ggrun.errors import GgrunError

    screen, writer = Screen(color), Writer()
    interactive = at_terminal()
    first = prompt_of(prompt_options)
    if first is None and not interactive:
        first = piped()
    if first is not None and not first.strip():
        raise GgrunError("the message is empty; there is nothing to answer")
    named = chosen(model, engine_options.model_flag, screen)
    system = system_of(prompt_options) or named.system
    stops, template = stops_of(prompt_options), template_of(prompt_options)
    how, output = sampling(sampling_options, named.sampling), output_of(output_options)
    with opened(named, engine_options, screen, chat_template=template) as engine:
        n_predict = -1 if prompt_options.n_predict is None else prompt_options.n_predict
        constraint_of(output, engine.tokenizer)  # what cannot be used is told before anything is typed
        conversation = Conversation(engine, how, system, n_predict, stops, prompt_options.keep, output=output)
        session = Session(conversation, screen, writer, named.label, show_timings=show_timings, json_output=json_output)
        session.set_overflow(on_overflow or ("ask" if interactive else "stop"))
        if interactive:
            session.ask = _ask
        if first is not None:
            try:
                session.say(first)
            except GgrunError as error:
                if not interactive:
                    raise
                screen.note(f"error: {error}")
        if session.interrupted and not interactive:
            raise typer.Exit(130)
        if (single_turn and first is not None) or not interactive:
            return
        reader: Reader = PlainReader()
        if writer.terminal:
            reader = TerminalReader(history_file(), COMMANDS, multiline)
            screen.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        session.loop(reader, turns=1 if single_turn else None)


def _ask(question: str) -> str:
    """The line typed after a question on stderr; empty on Ctrl-C."""
    print(question, end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline()
    except KeyboardInterrupt:
        return ""
