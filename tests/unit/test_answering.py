"""From a task to the pieces of its answer: what is submitted, what is read, what is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from ggrun.server import answering, choices
from ggrun.server.answering import Whole, ask, collect
from ggrun.server.errors import ApiError
from ggrun.server.task import End, Piece, Task, Text
from tests.unit.scripted import OneModel, scripted, tokenizer

T = TypeVar("T")
HELLO = ({"role": "user", "content": "Hello"},)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 10))


def whole(model: Any, *tasks: Task) -> list[Whole]:
    async def work() -> list[Whole]:
        shelf = OneModel(model)
        result = await collect(await ask(shelf, None, *tasks))
        assert shelf.n_used == 0
        return result

    return run(work())


def refused(model: Any, task: Task) -> ApiError:
    async def work() -> None:
        shelf = OneModel(model)
        try:
            await ask(shelf, None, task)
        finally:
            assert shelf.n_used == 0

    with pytest.raises(ApiError) as caught:
        run(work())
    assert not model.engine.submitted
    return caught.value


def test_an_answer_has_text_reason_and_counts() -> None:
    model = scripted("It is a list. Ä𝄞!")
    [answer] = whole(model, Task(messages=HELLO))
    assert answer.text == "It is a list. Ä𝄞!"
    end = answer.end
    assert end is not None
    n = len(tokenizer().encode("It is a list. Ä𝄞!", add_special=False))
    assert (end.reason, end.usage.answer, end.usage.prompt) == ("stop", n, len(model.engine.submitted[0]["ids"]))
    assert {"prompt_per_token_ms", "predicted_per_second", "cache_n"} <= set(end.timings)


def test_messages_go_through_the_template() -> None:
    model = scripted("x", system="Be brief.")
    whole(model, Task(messages=HELLO))
    text = tokenizer().decode(model.engine.submitted[0]["ids"], skip_special=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert model.engine.submitted[0]["strip_space"]


def test_a_prefilled_answer_is_continued() -> None:
    model = scripted("x")
    whole(model, Task(messages=(*HELLO, {"role": "assistant", "content": "Well, "}), prefill=True))
    assert tokenizer().decode(model.engine.submitted[0]["ids"], skip_special=False).endswith("<|im_start|>assistant\nWell, ")


def test_template_variables_arrive() -> None:
    model = scripted("x", source="{{ messages[0].content }}{{ effort }}")
    whole(model, Task(messages=HELLO, template={"effort": "high"}))
    assert tokenizer().decode(model.engine.submitted[0]["ids"]) == "Hellohigh"


def test_what_a_template_cannot_do_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    model = scripted("x", source=source)
    talk = ({"role": "system", "content": "S"}, *HELLO)
    whole(model, Task(messages=talk))
    whole(model, Task(messages=talk))
    assert capsys.readouterr().err.count("scripted: the chat template takes no system message") == 1


def test_a_long_prompt_is_tokenized_in_a_thread() -> None:
    model = scripted("x", n_ctx=100_000)
    text = "word " * 5000
    whole(model, Task(prompt=text))
    assert model.engine.submitted[0]["ids"] == tokenizer().encode(text, parse_special=True)


def test_prompts_of_texts_and_ids_in_a_row() -> None:
    model = scripted("x")
    whole(model, Task(prompt=["ab", 17, "cd"]))
    encode = tokenizer().encode
    assert model.engine.submitted[0]["ids"] == [*encode("ab"), 17, *encode("cd", add_special=False)]
    assert not model.engine.submitted[0]["strip_space"]


def test_choices_are_merged_and_seeded_apart() -> None:
    model = scripted("one", "two", "three")
    answers = whole(model, Task(messages=HELLO, n=3, sampling={"seed": 7}))
    assert sorted(answer.text for answer in answers) == ["one", "three", "two"]
    assert [call["sampling"].seed for call in model.engine.submitted] == [7, 8, 9]


def test_each_choice_has_a_constraint_of_its_own_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        submitted = False

        def copy(self) -> "Held":
            assert not Held.submitted
            return Held()

    async def made(*args: Any) -> Held:
        return Held()

    monkeypatch.setattr(answering, "constraint_of", made)
    model = scripted("x")
    submit = model.engine.submit

    def submitted(*args: Any, **options: Any) -> Any:
        Held.submitted = True
        return submit(*args, **options)

    monkeypatch.setattr(model.engine, "submit", submitted)
    whole(model, Task(messages=HELLO, n=3))
    assert len({id(call["constraint"]) for call in model.engine.submitted}) == 3


def test_several_tasks_number_their_choices_through() -> None:
    answers = whole(scripted("a", "b", "c", "d"), Task(prompt="x", n=2), Task(prompt="y", n=2))
    assert [answer.text for answer in answers] == ["a", "b", "c", "d"]


def test_the_requests_settings_win_over_the_models() -> None:
    model = scripted("x", sampling={"top_k": 5, "temperature": 0.1})
    whole(model, Task(messages=HELLO, sampling={"temperature": 0.7}))
    sampling = model.engine.submitted[0]["sampling"]
    assert (sampling.top_k, sampling.temperature, sampling.top_p) == (5, 0.7, 0.95)


@pytest.mark.parametrize(
    ("task", "param", "words"),
    [
        (Task(messages=HELLO, sampling={"top_p": 2}), "top_p", "top_p must be between 0 and 1"),
        (Task(messages=HELLO, sampling={"logit_bias": ((99999, 1.0),)}), "logit_bias", "token 99999"),
        (Task(messages=()), "messages", "nothing to answer"),
        (Task(prompt=""), "prompt", "empty"),
        (Task(prompt_ids=[5, 99999]), "prompt", "99999"),
        (Task(prompt="a", suffix="b"), "suffix", "cannot fill a gap"),
        (Task(messages=({"role": "user", "content": [{"type": "image_url"}]},)), "messages", "text only"),
    ],
)
def test_bad_tasks_are_refused_before_anything_is_submitted(task: Task, param: str, words: str) -> None:
    error = refused(scripted("x"), task)
    assert (error.status, error.param) == (400, param)
    assert words in error.message


def test_a_prompt_longer_than_the_context_gets_both_numbers() -> None:
    error = refused(scripted("x", n_ctx=10), Task(prompt_ids=[5] * 10))
    assert (error.status, error.type) == (400, "exceed_context_size_error")
    assert error.extra == {"n_prompt_tokens": 10, "n_ctx": 10}
    model = scripted("x", n_ctx=10)
    whole(model, Task(prompt_ids=[5] * 10, truncate=True))
    assert model.engine.submitted[0]["truncate"]


def test_stop_words_and_limits_are_the_engines() -> None:
    model = scripted("one two three")
    [answer] = whole(model, Task(messages=HELLO, stop=("two",)))
    assert answer.end is not None
    assert (answer.text, answer.end.reason, answer.end.stop_word) == ("one ", "stop", "two")
    [answer] = whole(scripted("one two three"), Task(messages=HELLO, n_predict=1))
    assert answer.end is not None
    assert (answer.end.reason, answer.end.usage.answer) == ("length", 1)


@pytest.mark.parametrize("text", ["It is a list, Ä𝄞 and more.", "日本語 text"])
def test_log_probabilities_spell_the_text(text: str) -> None:
    [answer] = whole(scripted(text), Task(messages=HELLO, n_top=2))
    assert b"".join(log.bytes for log in answer.tokens).decode() == text
    assert all(len(log.top) == 2 and log.top[0].id == log.id for log in answer.tokens)
    assert all(log.text == log.bytes.decode("utf-8", "replace") for log in answer.tokens)


def test_log_probabilities_leave_the_stop_word_out() -> None:
    [answer] = whole(scripted("one two three"), Task(messages=HELLO, n_top=0, stop=(" two",)))
    assert b"".join(log.bytes for log in answer.tokens).decode() == answer.text == "one"
    assert not whole(scripted("one"), Task(messages=HELLO))[0].tokens


def test_what_breaks_a_generation_is_raised_and_the_others_are_cancelled() -> None:
    model = scripted(RuntimeError("broken"), "long " * 50, endless=True)

    async def work() -> None:
        await collect(await ask(OneModel(model), None, Task(messages=HELLO, n=2)))

    with pytest.raises(RuntimeError, match="broken"):
        run(work())
    assert model.engine.generations[1].cancelled


def test_closing_cancels_at_any_point() -> None:
    for n_read in (0, 1, 5):
        model = scripted("word " * 20, endless=True)
        model.engine.hold.clear()
        if n_read:
            model.engine.hold.set()

        async def work(model: Any = model, n_read: int = n_read) -> None:
            shelf = OneModel(model)
            answer = await ask(shelf, None, Task(messages=HELLO, n=2))
            assert shelf.n_used == 1
            for _ in range(n_read):
                await anext(answer)
            await answer.aclose()
            await answer.aclose()
            assert shelf.n_used == 0
            assert len([piece async for piece in answer]) <= 128  # what had been read before

        run(work())
        assert all(generation.cancelled for generation in model.engine.generations)
        model.engine.hold.set()


def test_cancelling_the_reader_cancels_the_generation() -> None:
    model = scripted("x", endless=True)
    model.engine.hold.clear()
    shelf = OneModel(model)

    async def work() -> None:
        reading = asyncio.create_task(collect(await ask(shelf, None, Task(messages=HELLO))))
        await asyncio.sleep(0.05)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    run(work())
    assert model.engine.generations[0].cancelled
    assert shelf.n_used == 0
    model.engine.hold.set()


def test_an_answer_that_is_dropped_unread_is_cancelled() -> None:
    model = scripted("x", endless=True)
    model.engine.hold.clear()

    async def work() -> None:
        answer = await ask(OneModel(model), None, Task(messages=HELLO))
        del answer

    run(work())
    assert model.engine.generations[0].cancelled
    model.engine.hold.set()


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "MAX_UNREAD", 50)
    model = scripted("word " * 20, endless=True)

    async def work() -> None:
        async with await ask(OneModel(model), None, Task(messages=HELLO)) as answer:
            await asyncio.to_thread(lambda: [*iter(lambda: model.engine.generations[0].cancelled, True)])
            with pytest.raises(ApiError, match="nobody read"):
                await collect(answer)
            assert 50 < model.engine.generations[0].timings.predicted_n < 60

    run(work())


def test_pieces_come_while_others_wait() -> None:
    """A choice that has something to say is heard while another has not begun; each ends with its End."""
    model = scripted("a b c d e", "f g h i j")

    async def work() -> list[Piece]:
        async with await ask(OneModel(model), None, Task(messages=HELLO, n=2)) as answer:
            return [piece async for piece in answer]

    pieces = run(work())
    for number, text in ((0, "a b c d e"), (1, "f g h i j")):
        mine = [piece for piece in pieces if piece.choice == number]
        assert isinstance(mine[-1], End)
        assert "".join(piece.text for piece in mine if isinstance(piece, Text)) == text
