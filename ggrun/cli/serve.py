"""`ggrun serve`: a model behind OpenAI's, llama.cpp's, Anthropic's and Ollama's requests, and a page."""

from ggrun.cli.devices import ListDevicesFlag
from ggrun.cli.options import ModelArgument, SamplingOptions
from ggrun.cli.serve_options import AnswerOptions, CacheOptions, LimitOptions, ListenOptions, RouteOptions, ServedEngineOptions


def serve(
    model: ModelArgument = None,
    *,
    engine_options: ServedEngineOptions,
    listen_options: ListenOptions,
    route_options: RouteOptions,
    cache_options: CacheOptions,
    answer_options: AnswerOptions,
    limit_options: LimitOptions,
    sampling_options: SamplingOptions,
    list_devices: ListDevicesFlag = False,
) -> None:
    """Serve a model to programs and browsers of this machine, until Ctrl-C."""
    from ggrun.cli.serving import run

    run(
        model,
        engine_options,
        listen_options,
        route_options,
        cache_options,
        answer_options,
        limit_options,
        sampling_options,
    )
