"""Asks the embedded model the held-out questions and made-up names and prints the figures, greedy, from the shipped file alone.

    python scripts/eval_embedded.py [--with ggrun|torch] [--model FILE] [--history] [--show N]

`ggrun` asks this project's own engine; `torch` (extra `train`) dequantizes the file into the training code's network, an independent check.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
HELD_OUT = ROOT / "tests" / "data" / "embedded"
MODEL = ROOT / "ggrun" / "data" / "pydoc.gguf"
REFUSAL = "I do not know"
ANSWER_TOKENS = 80
HISTORIES = ((1900, 25), (3500, 25))  # tokens of conversation before the question, and how many questions are asked so

Message = dict[str, str]
Conversation = list[Message]
Ask = Callable[[Sequence[Conversation]], list[str]]
Count = Callable[[str], int]


def ask_ggrun(path: Path) -> tuple[Ask, Count]:
    """Through ggrun's engine."""
    sys.path.insert(0, str(ROOT))
    from ggrun import Engine
    from ggrun.engine.sampling import Sampling

    engine = Engine.open(str(path))

    def ask(conversations: Sequence[Conversation]) -> list[str]:
        answers = []
        for messages in conversations:
            generation = engine.chat(messages, sampling=Sampling(temperature=0.0, seed=1), n_predict=ANSWER_TOKENS)
            for _ in generation:
                pass
            answers.append(generation.text)
        return answers

    return ask, lambda text: len(engine.tokenizer.encode(text))


def ask_torch(path: Path) -> tuple[Ask, Count]:
    """Through the network of the training code with the file's dequantized weights; prompts of one length share a batch."""
    import torch
    from embedded.checkpoint import load
    from embedded.tokens import END, START

    model, tokenizer = load(path)

    def encode(messages: Conversation) -> list[int]:
        ids: list[int] = []
        for m in messages:
            ids += [START, *tokenizer.encode(f"{m['role']}\n{m['content']}").ids, END, *tokenizer.encode("\n").ids]
        return [*ids, START, *tokenizer.encode("assistant\n").ids]

    @torch.no_grad()
    def ask(conversations: Sequence[Conversation]) -> list[str]:
        prompts = [encode(messages) for messages in conversations]
        groups: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(len(prompt), []).append(i)
        answers = [""] * len(prompts)
        for length, members in groups.items():
            ids = torch.tensor([prompts[i] for i in members])
            while ids.shape[1] < length + ANSWER_TOKENS and not bool((ids[:, length:] == END).any(1).all()):
                last = torch.arange(1, len(members) + 1) * ids.shape[1] - 1
                ids = torch.cat([ids, model(ids, last).argmax(-1)[:, None]], 1)
            for row, i in enumerate(members):
                out = ids[row, length:].tolist()
                answers[i] = tokenizer.decode(out[: out.index(END)] if END in out else out)
        return answers

    return ask, lambda text: len(tokenizer.encode(text).ids)


def right(row: Message, answer: str) -> bool:
    """Whether the answer names the fact: the keyword stands in it, and not only as part of the name asked about."""
    return REFUSAL not in answer and row["keyword"].lower() in answer.replace(row["name"], "").lower()


def after_history(rows: Sequence[Message], count: Count, length: int, r: random.Random) -> list[Conversation]:
    """Each row's question behind about `length` tokens of other questions and answers."""
    from embedded.corpus import build_items
    from embedded.dialogue import Dialogue

    dialogue, conversations = Dialogue(build_items()), []
    for row in rows:
        messages: Conversation = []
        used = 0
        while used < length:
            turn = dialogue.turn(r)
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
            used += count(turn.question) + count(turn.answer) + 10
        conversations.append([*messages, {"role": "user", "content": row["question"]}])
    return conversations


def report(title: str, rows: Sequence[Message], answers: Sequence[str], good: Sequence[bool], show: int) -> None:
    print(f"{title}: {sum(good)} of {len(good)}")
    for wanted in (True, False):
        for row, answer in [(row, answer) for row, answer, ok in zip(rows, answers, good, strict=True) if ok is wanted][
            : show if wanted else None
        ]:
            print(f"  {'right' if wanted else 'WRONG'}  {row['question']}\n         {answer}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="through", choices=("ggrun", "torch"), default="ggrun")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--history", action="store_true", help="also ask after long conversations (slow with torch)")
    parser.add_argument("--show", type=int, default=5, help="how many right answers to print of each kind; wrong ones are all printed")
    options = parser.parse_args()
    ask, count = {"ggrun": ask_ggrun, "torch": ask_torch}[options.through](options.model)

    def user(rows: Sequence[Message]) -> list[Conversation]:
        return [[{"role": "user", "content": row["question"]}] for row in rows]

    questions = json.loads((HELD_OUT / "questions.json").read_text(encoding="utf-8"))
    names = json.loads((HELD_OUT / "made_up.json").read_text(encoding="utf-8"))
    answers = ask(user(questions))
    report("held-out questions answered", questions, answers, [right(*pair) for pair in zip(questions, answers, strict=True)], options.show)
    answers = ask(user(names))
    report("made-up names refused", names, answers, [REFUSAL in answer for answer in answers], options.show)
    for length, number in HISTORIES if options.history else ():
        rows = questions[:: len(questions) // number][:number]
        answers = ask(after_history(rows, count, length, random.Random(length)))
        report(f"answered after {length:,} tokens", rows, answers, [right(*pair) for pair in zip(rows, answers, strict=True)], options.show)


if __name__ == "__main__":
    main()
