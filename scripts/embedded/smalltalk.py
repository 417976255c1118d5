"""What is not about Python: greetings, questions about the model itself, and topics it does not know.

Knows: English. Must not know: any item of the standard library beyond the examples in its answers.
"""

from __future__ import annotations

import random

from .corpus import WORDS
from .phrasing import TABLES, expand

OFFTOPIC = "I only know Python's standard library. Try: What does itertools.chain do?"

# answer -> patterns of what people say
# ruff: noqa: E501
TALK: dict[str, tuple[str, ...]] = {
    "I am a tiny language model that comes with ggrun. I answer short questions about Python's standard library.": (
        "[who|what] [are you|are you exactly|is this|am I talking to]", "[what is|what's|tell me] your name", "introduce yourself",
        "are you [a bot|an AI|a human|ChatGPT|GPT-4|Llama|Gemini|a robot|a person|real|alive]", "who [made|trained|built|created|wrote] you",
        "[what|which] [model|language model|AI|LLM|program|bot] [is this|are you|am I using]", "tell me [about|something about] yourself",
        "[so|ok|and|hi,|hello,] who are you", "what kind of [model|AI|bot|program] are you", "what is ggrun", "describe yourself",
    ),
    "I can tell you what a function, method, class or module of Python's standard library does. Try: What does os.path.join do?": (
        "what can you [do|answer|explain|tell me|help with|do for me]", "[how|what] can you help me [|with]", "what do you know [|about]",
        "help", "help me", "what [should|can|could|may] I ask [|you]", "what questions can you answer", "can you help [me|] [|please]",
        "what are you [able to do|good at|capable of|good for|for]", "how do I use you", "what are your [skills|abilities|capabilities|limits]",
        "how does this work", "what is this [program|tool|chat] for", "I need help", "instructions", "what now", "give me an example",
    ),
    "Hello! Ask me about Python's standard library, for example: What does json.dumps do?": (
        "[hello|hi|hey|greetings|howdy|yo|hi there|hello there|hey there|hiya|good morning|good afternoon|good evening|good day]",
        "[hello|hi|hey|hi there], how are you [|today]", "how are you [|doing|today]", "[hi|hello] [bot|again|friend|everyone|computer|assistant]",
        "what's up", "nice to meet you", "is anyone there", "test", "are you there",
    ),
    "You're welcome! Ask me another one.": (
        "[thanks|thank you|thx|many thanks|thank you very much|thanks a lot|cheers|thank you so much|ok thanks|great, thanks|perfect, thank you]",
        "[great|cool|nice|ok|okay|good|perfect|wonderful|excellent|good answer|well done|very good|awesome|that helped|I see|got it|good job]",
    ),
    "Goodbye!": ("[bye|goodbye|see you|bye bye|good night|see you later|farewell|ciao|take care|I have to go|that is all|see you tomorrow]",),
}  # fmt: skip


def _dress(sentence: str, r: random.Random, endings: tuple[str, ...]) -> str:
    sentence = " ".join(sentence.split())
    return (sentence[0].upper() + sentence[1:] if r.random() < 0.65 else sentence) + r.choice(endings)


def talk(r: random.Random) -> tuple[str, str]:
    """(what the person says, the answer)."""
    answer = r.choice(list(TALK))
    return _dress(expand(r.choice(TALK[answer]), r), r, ("?", "?", "!", ".", "")), answer


def offtopic(r: random.Random) -> str:
    """A question about something else than Python."""
    sentence = expand(r.choice(TABLES["topic"]), r)
    for slot, key in (("{p}", "places"), ("{w}", "nouns"), ("{a}", "people")):
        while slot in sentence:
            sentence = sentence.replace(slot, r.choice(WORDS[key]), 1)
    return _dress(sentence, r, ("?", "?", ".", "", "!"))
