"""`ggrun run`: one completion to stdout and nothing else there."""

from typing import Annotated, Literal

import typer

from ggrun.cli.devices import ListDevicesFlag
from ggrun.cli.options import EngineOptions, JsonFlag, ModelArgument, PromptOptions, SamplingOptions, flag
from ggrun.cli.output import OutputOptions
from ggrun.errors import GgrunError

CHAT_TEMPLATE = "tokenizer.chat_template"


def run(
    model: ModelArgument = None,
    *,
    engine_options: EngineOptions,
    prompt_options: PromptOptions,
    sampling_options: SamplingOptions,
    output_options: OutputOptions,
    conversation: Annotated[
        bool | None,
        flag(
            "--conversation/--no-conversation",
            "-cnv/-no-cnv",
            panel="Prompt",
            shown="auto: where the file has one",
            help="put the prompt through the chat template, or complete it as it stands",
        ),
    ] = None,
    on_overflow: Annotated[
        Literal["stop", "shift"],
        flag("--on-overflow", panel="Prompt", shown="stop", help="when the context is full: stop, or forget the oldest"),
    ] = "stop",
    list_devices: ListDevicesFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Complete one prompt; only the completion goes to stdout."""
    from ggrun.cli.choosing import sampling
    from ggrun.cli.interrupt import interruptible
    from ggrun.cli.opening import chosen, opened
    from ggrun.cli.output import constraint_of, output_of
    from ggrun.cli.prompt import at_terminal, piped, prompt_of, stops_of, system_of, template_of
    from ggrun.cli.report import report
    from ggrun.cli.screen import Screen, Writer

    screen, writer = Screen(), Writer()
    prompt = prompt_of(prompt_options)
    if prompt is None:
        if at_terminal():
            raise GgrunError('there is no prompt; give one with -p "...", -f FILE, or a pipe')
        prompt = piped()
    named = chosen(model, engine_options.model_flag, screen)
    system = system_of(prompt_options) or named.system
    stops, template = stops_of(prompt_options), template_of(prompt_options)
    how, output = sampling(sampling_options, named.sampling), output_of(output_options)
    n_predict = -1 if prompt_options.n_predict is None else prompt_options.n_predict
    with opened(named, engine_options, screen, chat_template=template) as engine:
        constraint = constraint_of(output, engine.tokenizer)
        if conversation is None:
            conversation = bool(system or template) or CHAT_TEMPLATE in engine.file.metadata
        if conversation and not prompt.strip():
            raise GgrunError("the prompt is empty: there is nothing to answer")
        if conversation:
            messages = [{"role": role, "content": text} for role, text in (("system", system), ("user", prompt)) if text]
            ids, notes = engine.chat_ids(messages)
            for note in notes:
                screen.note(note)
        else:
            ids = engine.tokenizer.encode(prompt, add_special=True, parse_special=True)
        generation = engine.submit(
            ids,
            how,
            n_predict=n_predict,
            stop=stops,
            keep=prompt_options.keep,
            on_overflow=on_overflow,
            strip_space=conversation,
            constraint=constraint,
        )
        with interruptible(generation.cancel) as interrupted:
            for event in generation:
                if not json_output:
                    writer.write(event.text)
        if json_output:
            print(report(generation, named.label))
        elif writer.terminal:
            writer.end_line()
        if generation.finish_reason == "context_full":
            screen.note(f"stopped: the context of {engine.n_ctx} tokens is full; -c enlarges it, --on-overflow shift forgets the oldest")
        if generation.n_shifted:
            screen.note(f"the context was full: {generation.n_shifted} tokens of it were forgotten on the way")
        if interrupted():
            raise typer.Exit(130)
