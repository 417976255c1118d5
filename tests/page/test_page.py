"""The page in a real browser: against `ggrun serve` with the embedded model, and against a server that says what a test wants said."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.page.driving import Script, Tab

QUESTION = "What does os.path.join do?"
NewTab = Callable[..., Tab]


# ---- with the embedded model


def test_a_question_is_answered_with_figures_and_found_again_after_a_reload(served: str, new_tab: NewTab) -> None:
    tab = new_tab(served)
    page = tab.open()
    page.wait_for_selector(".sample >> nth=3")
    assert "pydoc" in page.locator(".empty").inner_text()
    answer = tab.ask(QUESTION)
    assert "os.path.join" in answer.locator(".body").inner_text()
    assert re.search(r"\d+ tokens\s*·?\s*[\d.,]+ t/s\s*·?\s*prompt 19", answer.locator(".figures").inner_text().replace("\n", " "))
    assert re.search(r"context \d+ of 4,096", page.locator("#context").inner_text())
    assert page.title().startswith(QUESTION)
    text = answer.locator(".body").inner_text()
    tab.ask("and shutil.rmtree?")
    assert "cached" in page.locator(".figures").last.inner_text()
    page.reload()
    page.wait_for_selector(".message.assistant")
    assert page.locator(".message").count() == 4
    assert page.locator(".message.assistant .body").first.inner_text() == text
    page.click("#new")
    assert page.locator(".message").count() == 0
    page.click(f".item-open:has-text('{QUESTION}')")
    assert page.locator(".message.assistant .body").first.inner_text() == text


def test_a_sample_question_is_sent_by_a_click(served: str, new_tab: NewTab) -> None:
    tab = new_tab(served)
    page = tab.open()
    page.wait_for_selector(".sample")
    question = page.locator(".sample").first.inner_text()
    page.click(".sample >> nth=0")
    tab.answered()
    assert page.locator(".message.user .body").inner_text() == question


def test_stop_ends_the_answer_and_frees_the_slot(served: str, new_tab: NewTab) -> None:
    tab = new_tab(served)
    page = tab.open()

    def endless(route: Any) -> None:
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"ignore_eos": True}))

    page.route("**/v1/chat/completions", endless)
    tab.send(QUESTION)
    page.wait_for_function("() => document.querySelector('.message.running .body')?.textContent.length > 60")
    assert "answer" in {slot["state"] for slot in httpx.get(f"{served}/slots").json()}
    page.keyboard.press("Escape")
    answer = tab.answered()
    assert "stopped" in answer.locator(".figures").inner_text()
    length = len(answer.locator(".body").inner_text())
    deadline = time.monotonic() + 5
    while any(slot["is_processing"] for slot in httpx.get(f"{served}/slots").json()):
        assert time.monotonic() < deadline, "the slot is still busy"
        time.sleep(0.05)
    assert len(answer.locator(".body").inner_text()) == length
    page.unroute("**/v1/chat/completions")
    assert "shutil.rmtree" in tab.ask("What does shutil.rmtree do?").locator(".body").inner_text()


def test_answering_again_and_editing_keep_the_versions(served: str, new_tab: NewTab) -> None:
    tab = new_tab(served)
    page = tab.open()
    tab.ask(QUESTION)
    page.click(".message.assistant .again")
    page.wait_for_selector(".message.assistant:not(.running) .branches")
    assert page.locator(".message.assistant .branches").inner_text().strip() == "2/2"
    assert page.locator(".message").count() == 2
    page.hover(".message.user")
    page.click(".message.user .edit")
    page.fill(".message.user textarea", "What does math.floor do?")
    page.press(".message.user textarea", "Enter")
    page.wait_for_selector(".message.user .branches")
    assert "math.floor" in tab.answered().locator(".body").inner_text()
    page.click(".message.user .branches button >> nth=0")
    assert page.locator(".message.user .body").inner_text() == QUESTION
    assert page.locator(".message.assistant .branches").inner_text().strip() == "2/2"
    page.reload()
    page.wait_for_selector(".message.assistant")
    assert page.locator(".message.user .body").inner_text() == QUESTION


def test_the_server_panel_shows_slots_cache_and_plan(served: str, new_tab: NewTab) -> None:
    tab = new_tab(served)
    page = tab.open()
    tab.ask(QUESTION)
    page.click("#server-open")
    page.wait_for_selector(".slot >> nth=3")
    page.wait_for_selector(".told li")
    text = page.locator("#panel").inner_text()
    for words in ("Slot 0", "idle", "in use", "kept for reuse", "CPU", "weights", "KV cache", "attn of layers 0-3", "head"):
        assert words in text, words
    assert page.locator(".layers .cell").count() == 6  # embed, four layers, head
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert page.evaluate("document.activeElement.id") == "server-open"


def test_a_key_is_asked_for_and_remembered(guarded: str, new_tab: NewTab) -> None:
    tab = new_tab(guarded)
    tab.expected = ("401",)
    page = tab.page
    page.goto(guarded)
    page.fill("dialog input[type=password]", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog >> text=did not accept")
    page.fill("dialog input[type=password]", "sesame")
    page.check("dialog input[type=checkbox]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".empty >> text=pydoc")
    assert "os.path.join" in tab.ask(QUESTION).locator(".body").inner_text()
    page.reload()
    page.wait_for_selector(".message.assistant")
    assert page.locator("dialog").count() == 0
    tab.ask("and math.floor?")


def test_putting_the_key_aside_says_what_is_needed(guarded: str, new_tab: NewTab) -> None:
    tab = new_tab(guarded)
    tab.expected = ("401",)
    tab.page.goto(guarded)
    tab.page.click("dialog >> text=Cancel")
    tab.page.wait_for_selector("#notice >> text=API key")
    assert tab.page.locator("#notice button").inner_text() == "Try again"


def test_settings_reach_the_request_and_stay_with_the_conversation(served: str, new_tab: NewTab) -> None:
    tab = new_tab(served)
    page = tab.open()
    page.click("#settings-open")
    page.wait_for_selector('#setting-temperature[placeholder="0"]')  # the server's --temp
    page.fill("#setting-max_tokens", "3")
    page.fill("#setting-system", "Be brief.")
    page.fill("#setting-top_p", "7")  # not valid: neither kept nor sent
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = tab.ask(QUESTION)
    body = sent.value.post_data_json
    assert body["max_tokens"] == 3
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "top_p" not in body
    assert "3 tokens" in answer.locator(".figures").inner_text()
    assert "limit" in answer.locator(".figures").inner_text()
    page.reload()
    page.wait_for_selector(".message")
    page.click("#settings-open")
    assert page.input_value("#setting-max_tokens") == "3"


# ---- what a model may say

DANGEROUS = """\
<script>window.ran = "script"</script>

<img src=x onerror="window.ran = 'img'">

[a link](javascript:window.ran='link') and ![a picture](https://example.org/tracker.png) and <a href="javascript:window.ran=1">raw</a>

<iframe srcdoc="<script>parent.ran='frame'</script>"></iframe><svg onload="window.ran='svg'"></svg>

```html
<img src=x onerror="window.ran='code'">
```

<details open ontoggle="window.ran='toggle'"><form action="https://example.org"><input name=q></form></details>
<style>body { display: none }</style><p style="position:fixed">end</p>
"""


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_nothing_a_model_writes_is_carried_out(scripted: Script, new_tab: NewTab, size: int) -> None:
    scripted.pieces = [DANGEROUS[i : i + size] for i in range(0, len(DANGEROUS), size)]
    tab = new_tab(scripted.base)
    page = tab.open()
    body = tab.ask("say something bad").locator(".body")
    page.wait_for_timeout(150)
    assert body.locator("script, img, iframe, svg[onload], style, form, details, [style], [onerror], [ontoggle]").count() == 0
    for link in body.locator("a").all():
        assert re.match("https?:|mailto:", link.get_attribute("href") or "https:")
        link.dispatch_event("click") if link.get_attribute("href") is None else None
    assert page.evaluate("window.ran") is None
    assert "<script>" in body.inner_text()  # shown as it was written
    page.reload()
    page.wait_for_selector(".message.assistant")
    page.wait_for_timeout(150)
    assert page.evaluate("window.ran") is None


def test_the_browser_itself_would_refuse_scripts(scripted: Script, new_tab: NewTab) -> None:
    """The second wall: were the sanitizer to fail, neither markup made of text nor code in the document would be taken."""
    tab = new_tab(scripted.base)
    tab.expected = ("Content Security Policy", "This document requires")
    page = tab.open()
    attempts = ["document.body.innerHTML = '<b>x</b>'", "document.body.setAttribute('onclick', 'window.ran = 1')"]
    for attempt in attempts:
        refused = page.evaluate("() => { try { " + attempt + "; return '' } catch (error) { return error.name } }")
        assert refused == "TypeError", attempt
    assert page.evaluate("() => window.ran") is None
    headers = httpx.get(scripted.base).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")


def test_code_is_coloured_and_copied(scripted: Script, new_tab: NewTab) -> None:
    code = 'def f(x):\n    return "é" * x\n'
    scripted.pieces = list(f"Look:\n\n```python\n{code}```\n\nThat is all.")
    tab = new_tab(scripted.base)
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = tab.open()
    tab.ask("code please")
    assert page.locator("figure.code .language").inner_text() == "python"
    page.wait_for_selector("figure.code .hljs-keyword")
    assert page.locator("figure.code code").text_content() == code.rstrip("\n")
    page.click("figure.code .copy")
    page.wait_for_selector("figure.code .copy >> text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == code.rstrip("\n")


def test_reasoning_is_folded_and_tool_calls_are_shown(scripted: Script, new_tab: NewTab) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    scripted.pieces = [
        {"reasoning_content": "Where do they "},
        {"reasoning_content": "live?"},
        "I will look.",
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "B'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'onn"}'}}]},
    ]
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.ask("weather?")
    assert not page.locator(".thought-text").is_visible()
    assert page.locator(".thought summary").inner_text().strip() == "Reasoning, 4 words"
    page.click(".thought summary")
    assert page.locator(".thought-text").inner_text() == "Where do they live?"
    assert "weather" in page.locator(".call").inner_text()
    assert '"city": "Bonn"' in page.locator(".call pre").inner_text()


# ---- what may go wrong

ERRORS = [
    (
        400,
        {"type": "exceed_context_size_error", "message": "too long", "n_prompt_tokens": 9000, "n_ctx": 4096},
        ["9000 tokens", "holds 4096", "larger -c"],
    ),
    (400, {"message": "temperature: 9 is too much", "param": "temperature"}, ["Temperature: 9 is too much.", "settings"]),
    (429, {"message": "512 requests are waiting already; try again later"}, ["512 requests", "in a moment"]),
    (500, {"message": "the engine stopped"}, ["The engine stopped.", "Try again"]),
]


@pytest.mark.parametrize(("status", "error", "words"), ERRORS)
def test_errors_are_sentences_with_what_to_do(
    scripted: Script, new_tab: NewTab, status: int, error: dict[str, Any], words: list[str]
) -> None:
    scripted.error = (status, error)
    tab = new_tab(scripted.base)
    tab.expected = (str(status),)
    page = tab.open()
    tab.ask("hello")
    text = page.locator(".problem").inner_text()
    assert all(word in text for word in words), text
    if "larger" not in words[-1]:
        scripted.error = None
        page.click(".problem button")
        page.wait_for_selector(".message.assistant:not(.running) >> text=Hello.")
        assert [m["content"] for m in scripted.requests[-1]["messages"]] == ["hello"]


def test_a_connection_that_breaks_keeps_what_came(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces, scripted.broken = ["half an ", "answer"], True
    tab = new_tab(scripted.base)
    tab.open()
    answer = tab.ask("hello")
    assert answer.locator(".body").inner_text() == "half an answer"
    assert "before the answer was complete" in answer.locator(".problem").inner_text()


def test_a_server_that_is_gone_is_said_to_be(scripted: Script, new_tab: NewTab) -> None:
    tab = new_tab(scripted.base)
    tab.expected = ("ERR_",)
    page = tab.open()
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    assert "cannot be reached" in tab.ask("hello").locator(".problem").inner_text()


def test_stopping_by_the_button_closes_the_connection(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces, scripted.pause = [f"word{i} " for i in range(2000)], 0.02
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.send("talk")
    page.wait_for_selector("text=word5")
    assert page.get_attribute("#send", "aria-label") == "Stop the answer"
    page.click("#send")
    tab.answered()
    page.wait_for_timeout(300)
    assert scripted.gone == 1


def test_an_answer_goes_on_while_another_conversation_is_read(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces, scripted.pause = [f"word{i} " for i in range(60)], 0.02
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.send("talk")
    page.wait_for_selector("text=word5")
    page.click("#new")
    assert page.locator(".message").count() == 0
    page.wait_for_timeout(200)
    page.click(".item-open")
    page.wait_for_selector("text=word20")
    assert page.locator(".message.running").count() == 1
    assert tab.answered().locator(".body").inner_text() == " ".join(f"word{i}" for i in range(60))


def test_a_reload_in_the_middle_keeps_what_had_come(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces, scripted.pause = [f"word{i} " for i in range(3000)], 0.02
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.send("talk")
    page.wait_for_selector("text=word120")
    page.reload()
    page.wait_for_selector(".message.assistant >> text=word10")
    assert "interrupted" in page.locator(".figures").inner_text()


# ---- conversations


def test_rename_search_delete(scripted: Script, new_tab: NewTab) -> None:
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.ask("the first one, about lighthouses")
    page.click("#new")
    tab.ask("the second one")
    page.click(".item.current .item-more")
    page.click(".menu >> text=Rename")
    page.fill("dialog input", "Boats & <b>ships</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#title >> text=Boats & <b>ships</b>")
    page.fill("#search", "lighthouses")
    assert page.locator(".item").count() == 1
    page.fill("#search", "")
    assert page.locator(".item").count() == 2
    page.click(".item.current .item-more")
    page.click(".menu >> text=Delete")
    page.click("dialog >> text=Cancel")
    assert page.locator(".item").count() == 2
    page.click(".item.current .item-more")
    page.click(".menu >> text=Delete")
    page.click("dialog .danger")
    page.wait_for_function("() => document.querySelectorAll('.item').length === 1")
    page.reload()
    page.wait_for_selector(".item")
    assert page.locator(".item").count() == 1


def test_a_conversation_deleted_in_the_middle_of_its_answer_stays_deleted(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces, scripted.pause = [f"word{i} " for i in range(2000)], 0.02
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.send("talk")
    page.wait_for_selector("text=word5")
    page.click(".item.current .item-more")
    page.click(".menu >> text=Delete")
    page.click("dialog .danger")
    page.wait_for_selector(".empty")
    page.wait_for_timeout(300)
    assert scripted.gone == 1
    page.reload()
    page.wait_for_selector(".empty")
    assert page.locator(".item").count() == 0


def test_an_edit_waits_for_the_answer_that_comes(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces, scripted.pause = [f"word{i} " for i in range(2000)], 0.02
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.send("talk")
    page.wait_for_selector("text=word5")
    page.hover(".message.user")
    page.click(".message.user .edit")
    page.fill(".message.user textarea", "other words")
    page.press(".message.user textarea", "Enter")
    assert page.input_value(".message.user textarea") == "other words"  # nothing that was typed is lost
    page.click("#send")
    tab.answered()
    scripted.pieces = ["fine"]
    page.press(".message.user textarea", "Enter")
    page.wait_for_selector(".message.assistant >> text=fine")
    assert page.locator(".message.user .body").inner_text() == "other words"


def test_without_storage_it_works_and_says_so(scripted: Script, new_tab: NewTab) -> None:
    tab = new_tab(scripted.base)
    tab.page.add_init_script("Object.defineProperty(window, 'indexedDB', { get() { throw new Error('off') } })")
    page = tab.open()
    page.wait_for_selector("#notice >> text=keeps nothing")
    assert tab.ask("hello").locator(".body").inner_text() == "Hello."
    page.click("#new")
    page.click(".item-open")
    page.wait_for_selector(".message.assistant >> text=Hello.")


def test_export_and_import(scripted: Script, new_tab: NewTab, tmp_path: Path) -> None:
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.ask("remember me")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "all.json"
    download.value.save_as(path)
    other = new_tab(scripted.base)
    page = other.open()
    page.set_input_files("#import-file", path)
    page.wait_for_selector(".message.user >> text=remember me")
    page.wait_for_selector("#notice >> text=1 conversation was imported")
    page.reload()
    page.wait_for_selector(".message.user >> text=remember me")
    file = json.loads(path.read_text())
    node = next(iter(file["conversations"][0]["nodes"].values()))
    node["parent"] = node["id"]  # a circle
    for text, said in (("nonsense", "not JSON"), ('{"a": 1}', "not written by this page"), (json.dumps(file), "damaged")):
        path.write_text(text)
        page.set_input_files("#import-file", path)
        page.wait_for_selector(f"#notice >> text={said}")
    assert page.locator(".item").count() == 1


def test_two_tabs_see_each_other_s_conversations(scripted: Script, new_tab: NewTab) -> None:
    one = new_tab(scripted.base)
    one.open()
    two = new_tab(scripted.base, context=one.page.context)
    two.open()
    one.ask("from the first tab")
    two.page.wait_for_selector(".item >> text=from the first tab")


def test_models_can_be_chosen_where_there_are_several(scripted: Script, new_tab: NewTab) -> None:
    tab = new_tab(scripted.base)
    page = tab.open()
    page.wait_for_selector(".model-name >> text=scripted")
    assert page.locator("#model select").count() == 0
    scripted.models = [{"id": "small", "state": "loaded"}, {"id": "qwen-coder", "state": "unloaded"}]
    page.reload()
    page.wait_for_selector("#model select")
    page.select_option("#model select", "qwen-coder")
    page.wait_for_selector(".sample >> text=SQL")
    answer = tab.ask("hello")
    assert scripted.requests[-1]["model"] == "qwen-coder"
    assert "qwen-coder" in answer.locator(".figures").inner_text()


# ---- for everyone


def test_everything_by_keyboard(scripted: Script, new_tab: NewTab) -> None:
    tab = new_tab(scripted.base)
    page = tab.open()
    assert page.evaluate("document.activeElement.id") == "input"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    tab.answered()
    assert page.locator(".message.user .body").inner_text() == "one\ntwo"
    assert page.evaluate("document.activeElement.id") == "input"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+a")
    page.keyboard.type("three")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message.user .branches")
    tab.answered()
    page.keyboard.press("Control+Shift+Enter")
    page.wait_for_selector(".message.assistant:not(.running) .branches")
    page.keyboard.press("Control+,")
    assert page.locator("#panel h2").inner_text() == "Settings"
    page.keyboard.press("Control+.")
    assert page.locator("#panel h2").inner_text() == "Server"
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector(".empty")
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Tab")
    assert "item-open" in page.evaluate("document.activeElement.className")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message")
    page.focus(".item-more")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "Export"
    page.keyboard.press("Escape")
    assert "item-more" in page.evaluate("document.activeElement.className")
    page.keyboard.press("?")
    page.wait_for_selector("dialog .keys")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def test_what_has_the_focus_keeps_it_while_answers_come(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces, scripted.pause = ["```python\n", "x = 1\n" * 3, "```\n", *["word "] * 100], 0.02
    tab = new_tab(scripted.base)
    page = tab.open()
    scripted.pause = 0
    tab.ask("first")
    scripted.pause = 0.02
    tab.send("second")
    page.wait_for_selector(".message.running figure.code")
    page.wait_for_selector(".message.running .figures >> text=t/s")
    page.locator("figure.code .copy").first.focus()
    tab.answered()
    assert page.evaluate("() => document.activeElement.className") == "copy"
    page.locator(".message.assistant .again").first.focus()
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")  # the page looks at the server again
    page.wait_for_timeout(300)
    assert "again" in page.evaluate("() => document.activeElement.className")


def test_every_control_has_a_name_and_a_visible_focus(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces = ["Hi\n\n```\ncode\n```\n\n|a|\n|-|\n|b|"]
    tab = new_tab(scripted.base)
    page = tab.open()
    tab.ask("hello")
    page.click("#settings-open")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, a, summary, [tabindex]")]
        .filter((e) => e.checkVisibility() && e.id !== "scroller")
        .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length || e.title))
        .map((e) => e.outerHTML)""")
    assert nameless == []
    unseen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate("""() => { const e = document.activeElement, s = getComputedStyle(e), box = e.closest(".composer") ?? e;
            const seen = s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0 || getComputedStyle(box).boxShadow.includes("3px");
            return seen || e === document.body ? "" : e.outerHTML.slice(0, 120); }""")
        if found:
            unseen.append(found)
    assert unseen == []


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
TABLE = "|" + "wide column|" * 12 + "\n|" + "-|" * 12 + "\n|" + "b|" * 12
WIDE = "a" * 300 + "\n\n```python\nx = " + "1 + " * 200 + "1\n```\n\n" + TABLE


def test_on_a_phone_nothing_is_wider_than_the_screen(scripted: Script, new_tab: NewTab) -> None:
    scripted.pieces = [WIDE]
    tab = new_tab(scripted.base, **PHONE)
    page = tab.open()

    def fits() -> bool:
        return bool(page.evaluate("""() => document.documentElement.scrollWidth <= 390 && visualViewport.scale === 1 &&
            ["scroller", "panel", "sidebar"].map((id) => document.getElementById(id)).every((e) => e.scrollWidth <= e.clientWidth)"""))

    assert fits()
    page.fill("#input", "wide " + "w" * 200)
    page.tap("#send")
    tab.answered()
    assert fits()
    page.tap("#sidebar-open")
    page.wait_for_timeout(250)
    assert fits()
    assert page.evaluate("document.getElementById('main').inert")
    page.tap(".item-open")
    assert not page.evaluate("document.getElementById('main').inert")
    for name in ("#settings-open", "#server-open"):
        page.tap(name)
        assert fits()
        page.tap(".panel-head .icon-button")
    small = page.evaluate("""() => [...document.querySelectorAll("button")].filter((e) => e.checkVisibility() && !e.closest("[inert]"))
        .map((e) => [e.ariaLabel ?? e.textContent, e.getBoundingClientRect()])
        .filter(([, box]) => box.width < 24 || box.height < 24).map(([name]) => name)""")
    assert small == []


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read_and_the_choice_stays(scripted: Script, new_tab: NewTab, scheme: str) -> None:
    scripted.pieces = ["Text with `code`\n\n```python\n# comment\nreturn 'x', 1\n```"]
    tab = new_tab(scripted.base, color_scheme=scheme)
    page = tab.open()
    tab.ask("hello")
    page.wait_for_selector(".hljs-comment")
    colours = (".hljs-comment", ".hljs-string", ".hljs-keyword", ".hljs-number")
    for name in ("body", ".user .body", ".figures", "figcaption", "#context", ".item-open", *colours):
        colour, ground = page.evaluate(
            """(name) => {
                const element = document.querySelector(name), colour = getComputedStyle(element).color;
                let ground = element;
                while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
                return [colour, getComputedStyle(ground).backgroundColor];
            }""",
            name,
        )
        high, low = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, colour, ground)
    dark = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark == (scheme == "dark")
    while page.evaluate("document.documentElement.dataset.theme") != ("light" if dark else "dark"):
        page.click("#theme")
    page.reload()
    page.wait_for_selector(".message")
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2) != dark


# ---- its files


def test_only_the_page_s_own_files_are_served_and_unchanged_ones_not_again(scripted: Script) -> None:
    with httpx.Client(base_url=scripted.base) as client:
        for path in ("../page.py", "%2e%2e/page.py", "vendor", "vendor/README.md", "/etc/passwd", ""):
            assert client.get("/static/" + path).status_code == 404, path
        kinds = {"": "text/html", "static/app.js": "text/javascript", "static/css/base.css": "text/css", "static/icon.svg": "image/svg+xml"}
        for path, kind in kinds.items():
            answer = client.get("/" + path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = client.get("/" + path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


def test_every_vendored_file_is_named_with_its_licence() -> None:
    vendor = Path(__file__).resolve().parents[2] / "ggrun" / "server" / "page" / "vendor"
    readme = (vendor / "README.md").read_text()
    for name in ("marked", "dompurify", "@highlightjs/cdn-assets"):
        assert name in readme
    for licence in re.findall(r"`([\w./]*LICENSE)`", readme):
        assert (vendor / licence).stat().st_size > 500
    assert len(re.findall(r"`([\w./]*LICENSE)`", readme)) == 3
