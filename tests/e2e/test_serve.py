"""The real server in a process: starting, keys, hosts, limits on what clients do, and its end."""

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.e2e.command import ggrun
from tests.e2e.serving import Served, rest_of

CHAT = {"messages": [{"role": "user", "content": "What is json?"}], "max_tokens": 8, "temperature": 0}
MOST = 230  # connections the limited server takes


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("--context-shift", "--metrics") as served:
        yield served


@pytest.fixture(scope="module")
def limited() -> Iterator[Served]:
    with Served(
        "--read-timeout", "1", "--max-body", "1", "--max-connections", str(MOST), "--max-queue", "2", "-np", "1", "--context-shift"
    ) as s:
        yield s


def test_it_starts_and_says_what_it_is(server: Served) -> None:
    assert "pydoc: a conversation may grow to 4096 tokens (-c)" in server.said
    assert "4 slots (-np), which share a pool of" in server.said
    assert server.ask("GET", "/health") == (200, {"status": "ok"})
    status, answer = server.ask("POST", "/v1/chat/completions", CHAT)
    assert status == 200
    assert answer["model"] == "pydoc"
    assert answer["choices"][0]["message"]["content"]


def test_a_stream_for_http_1_0_is_not_chunked(server: Served) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((server.host, server.port), 10) as sock:
        sock.sendall(head.encode() + body)
        told, _, answer = rest_of(sock).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in told.lower()
    assert answer.startswith(b"data: {")
    assert answer.endswith(b"data: [DONE]\n\n")


def test_hosts_and_origins(server: Served) -> None:
    assert server.ask("GET", "/health", host="evil.example")[0] == 403
    assert server.ask("POST", "/v1/chat/completions", CHAT, origin="http://evil.example")[0] == 403
    assert server.ask("POST", "/v1/chat/completions", CHAT, origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_only_this_machine_reaches_it(server: Served) -> None:
    assert server.host == "127.0.0.1"
    with socket.socket() as sock:  # 127.0.0.2 is another address of this machine
        assert sock.connect_ex(("127.0.0.2", server.port)) != 0


def test_what_is_no_http(server: Served) -> None:
    with server.connect() as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no http\r\n\r\n")
        answer = rest_of(sock)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"error"' in answer


def test_a_client_that_goes_away_frees_its_slot(server: Served) -> None:
    with server.stream():
        assert not server.idle(0.05)
    assert server.idle(1)


def test_a_client_of_a_whole_answer_that_goes_away(server: Served) -> None:
    data = b'{"prompt": "The json module", "ignore_eos": true, "max_tokens": -1}'
    with server.connect() as sock:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        sock.sendall(head % len(data) + data)
        while all(not slot["is_processing"] for slot in server.ask("GET", "/slots")[1]):
            time.sleep(0.01)
    assert server.idle(1)


def test_a_reset_connection_frees_its_slot(server: Served) -> None:
    with server.stream() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends a reset
    assert server.idle(1)


def test_a_pipelined_and_a_kept_connection(server: Served) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 3)
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert rest_of(sock).count(b'{"status":"ok"}') == 4


def test_tokens_and_templates(server: Served) -> None:
    tokens = server.ask("POST", "/tokenize", {"content": "json.dumps writes ä text"})[1]["tokens"]
    assert server.ask("POST", "/detokenize", {"tokens": tokens})[1]["content"] == "json.dumps writes ä text"
    prompt = server.ask("POST", "/apply-template", CHAT)[1]["prompt"]
    assert prompt == "<|im_start|>user\nWhat is json?<|im_end|>\n<|im_start|>assistant\n"
    props = server.ask("GET", "/props")[1]
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (4, 4096)


def test_a_slot_outlives_its_server(tmp_path: Path) -> None:
    prompt = {"prompt": "What does json.dumps do? " * 30, "max_tokens": 4, "temperature": 0}
    with Served("--slot-save-path", tmp_path, "-np", "1") as served:
        first = served.ask("POST", "/v1/completions", prompt)[1]
        saved = served.ask("POST", "/slots/0?action=save", {"filename": "a chat.bin"})
        assert saved[0] == 200, saved
        assert saved[1]["n_written"] == (tmp_path / "a chat.bin").stat().st_size
        erased = served.ask("POST", "/slots/0?action=erase")
        assert erased[1]["n_erased"] == saved[1]["n_saved"]
    with Served("--slot-save-path", tmp_path, "-np", "1") as served:
        assert served.ask("POST", "/slots/0?action=restore", {"filename": "a chat.bin"})[1]["n_restored"] == saved[1]["n_saved"]
        again = served.ask("POST", "/v1/completions", prompt)[1]
        assert again["choices"][0]["text"] == first["choices"][0]["text"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
        (tmp_path / "a chat.bin").write_bytes(b"damaged")
        status, answer = served.ask("POST", "/slots/0?action=restore", {"filename": "a chat.bin"})
        assert status == 400
        assert "Traceback" not in answer["error"]["message"]


def test_metrics_count(server: Served) -> None:
    server.ask("POST", "/v1/chat/completions", CHAT)
    status, text = server.ask("GET", "/metrics")
    assert status == 200
    assert 'ggrun_time_to_first_token_seconds_count{model="pydoc"}' in text
    counts = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}
    assert counts['ggrun_inter_token_seconds_count{model="pydoc"}'] >= 7
    assert counts['ggrun_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}'] >= 1


# ---- clients that mean no good


def test_a_head_that_does_not_come(limited: Served) -> None:
    start = time.monotonic()
    with limited.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: loc")
        answer = rest_of(sock)
    assert answer.startswith(b"HTTP/1.1 408")
    assert 0.8 < time.monotonic() - start < 5


def test_a_head_that_drips(limited: Served) -> None:
    with limited.connect() as sock:
        start = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012 - the connection ends while we drip
            sock.sendall(b"GET /health HTTP/1.1\r\n")
            while time.monotonic() - start < 10:
                sock.sendall(b"x: y\r\n")
                time.sleep(0.05)
        assert time.monotonic() - start < 5


def test_a_body_that_does_not_come(limited: Served) -> None:
    with limited.connect() as sock:
        sock.sendall(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        answer = rest_of(sock)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 1 seconds" in answer


def test_a_connection_that_says_nothing(limited: Served) -> None:
    with limited.connect() as sock:
        assert rest_of(sock) == b""


def test_a_half_closed_connection(limited: Served) -> None:
    for sent in (
        b"",
        b"GET /hea",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
    ):
        with limited.connect() as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            assert b"HTTP/1.1 5" not in rest_of(sock)
    assert limited.ask("GET", "/health")[0] == 200


def test_a_head_that_is_too_large(limited: Served) -> None:
    with limited.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        answer = b""
        try:
            for _ in range(40):
                sock.sendall(b"x-long: " + b"a" * 8000 + b"\r\n")
            answer = rest_of(sock)
        except OSError:
            return  # closed while we sent: refused, too
    assert answer.startswith(b"HTTP/1.1 431")


def test_a_body_that_is_too_large(limited: Served) -> None:
    status, answer = limited.ask("POST", "/tokenize", b'{"content": "' + b"a" * (3 << 20) + b'"}')
    assert status == 413
    assert "larger than 1 MiB" in answer["error"]["message"]


def test_a_large_body_that_asks_first(limited: Served) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
    head += b"content-length: %d\r\n\r\n"
    with limited.connect() as sock:
        sock.sendall(head % (5 << 20))
        assert rest_of(sock).startswith(b"HTTP/1.1 413")
    with limited.connect() as sock:
        sock.sendall(head % 16)
        assert sock.recv(1000).startswith(b"HTTP/1.1 100")
        sock.sendall(b'{"content": "a"}')
        assert b"HTTP/1.1 200" in sock.recv(1000)


def test_more_connections_than_it_takes(limited: Served) -> None:
    open_ones: list[socket.socket] = []
    try:
        refused = 0
        for _ in range(MOST + 20):
            sock = limited.connect()
            open_ones.append(sock)
        time.sleep(0.2)
        for sock in open_ones:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                refused += sock.recv(100).startswith(b"HTTP/1.1 503")
        assert refused == 20
    finally:
        for sock in open_ones:
            sock.close()
    time.sleep(0.2)
    assert limited.ask("GET", "/health")[0] == 200


def test_requests_in_a_full_queue(limited: Served) -> None:
    """One answers, two wait; the others are told to come back, and the server goes on."""
    with ThreadPoolExecutor(8) as pool:
        with limited.stream():
            asked = [pool.submit(limited.ask, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}) for _ in range(8)]
            end = time.monotonic() + 10
            while sum(one.done() for one in asked) < 6 and time.monotonic() < end:
                time.sleep(0.02)
            assert [one.result()[0] for one in asked if one.done()] == [429] * 6
            waiting = [one for one in asked if not one.done()]
        assert [one.result()[0] for one in waiting] == [200, 200]
    assert limited.idle()


@pytest.mark.slow
def test_a_client_that_does_not_read() -> None:
    """Its stream stops at the limit, and then its connection is dropped, though it never takes what was written."""
    with Served("--context-shift", "--timeout", "2") as served:
        before = served.n_sockets
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", served.port))
            data = b'{"prompt": "The json module", "ignore_eos": true, "max_tokens": -1, "stream": true, "n": 4}'
            head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            sock.sendall(head % len(data) + data)
            time.sleep(1)
            assert served.n_sockets > before
            assert served.idle(20)
            end = time.monotonic() + 20
            while served.n_sockets > before and time.monotonic() < end:
                time.sleep(0.1)
            assert served.n_sockets <= before
        assert served.ask("GET", "/health")[0] == 200


def test_no_connection_is_left(limited: Served) -> None:
    before = limited.n_sockets
    for _ in range(60):
        with limited.connect() as sock:
            sock.sendall(b"GET /health HT")
    for _ in range(20):
        with limited.stream():
            pass
    assert limited.idle()
    end = time.monotonic() + 5
    while limited.n_sockets > before and time.monotonic() < end:
        time.sleep(0.05)
    assert limited.n_sockets <= before


def test_the_plain_loop_and_parser_do_the_same() -> None:
    """Without uvloop and httptools, which are an extra."""
    with Served("--read-timeout", "1", "--max-connections", "3", "--context-shift", without=["uvloop", "httptools"]) as served:
        assert served.ask("POST", "/v1/chat/completions", CHAT)[0] == 200
        assert served.ask("POST", "/v1/chat/completions", CHAT, host="evil.example")[0] == 403
        with served.connect() as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nhost: loc")
            assert rest_of(sock).startswith(b"HTTP/1.1 408")
        with served.connect() as sock:
            sock.sendall(b"no http at all\r\n\r\n")
            answer = rest_of(sock)
            assert answer.startswith(b"HTTP/1.1 400")
            assert b'"error"' in answer
        with served.connect(), served.connect(), served.connect(), served.connect() as fourth:
            assert rest_of(fourth).startswith(b"HTTP/1.1 503")
        with served.stream():
            pass
        assert served.idle(1)
        with served.stream() as sock:
            served.process.send_signal(signal.SIGTERM)
            assert b"the server is shutting down" in rest_of(sock)
            assert served.process.wait(10) == 0


# ---- its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(number: int) -> None:
    with Served() as served:
        with served.connect():  # somebody's kept connection does not hold it up
            start = time.monotonic()
            assert served.stop(number) == 0
        assert time.monotonic() - start < 3
        assert "Traceback" not in served.said


def test_a_signal_in_the_middle_of_a_stream() -> None:
    with Served("--context-shift", "--shutdown-timeout", "1.5") as served, served.stream() as sock:
        start = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        tail = rest_of(sock)
        assert served.process.wait(10) == 0
        assert time.monotonic() - start < 4
        last = [frame for frame in tail.split(b"\n\n") if b"data: " in frame][-1]
        assert b"the server is shutting down" in last
        assert tail.endswith(b"0\r\n\r\n")  # the stream is whole
        assert "Traceback" not in served.said


def test_answers_that_end_in_time_are_finished() -> None:
    with Served() as served, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.ask, "POST", "/v1/completions", {"prompt": "The json", "max_tokens": 1500, "ignore_eos": True})
        while not any(slot["is_processing"] for slot in served.ask("GET", "/slots")[1]):
            time.sleep(0.005)
        assert served.stop() == 0
        status, answer = asked.result()
        assert (status, answer["usage"]["completion_tokens"]) == (200, 1500)


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with Served("--context-shift", "--shutdown-timeout", "60") as served, served.stream():
        served.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert served.process.poll() is None
        start = time.monotonic()
        assert served.stop(signal.SIGINT) == 130
        assert time.monotonic() - start < 1


SLOW = """
import time
from ggrun.server.app import create_app
from ggrun.server.listener import bind, serve
from ggrun.server.settings import Settings
from ggrun.server.shelf import Entry, Shelf

shelf = Shelf([Entry("slow", None, lambda taken: time.sleep(60))], Settings())
sockets = bind(("127.0.0.1",), 0)

async def start():
    print(sockets[0].getsockname()[1], flush=True)
    await shelf.open()

serve(create_app(shelf, Settings()), sockets, Settings(), start)
"""


def test_a_signal_while_a_model_loads() -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW], cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        end = time.monotonic() + 10
        while True:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            text = answer.read()
            if b"Loading model" in text or time.monotonic() > end:
                break
        assert (answer.status, b"Loading model" in text) == (503, True)
        connection.request("POST", "/tokenize", b'{"content": "a"}', {"content-type": "application/json"})  # waits for the model
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert connection.getresponse().status == 503
        assert process.wait(20) == 0
        assert time.monotonic() - start < 7


def test_a_port_in_use(server: Served) -> None:
    done = ggrun("serve", "--port", str(server.port))
    assert done.returncode == 1
    assert f"error: port {server.port} of 127.0.0.1 is in use by another program" in done.stderr
    assert "Traceback" not in done.stderr


# ---- who may ask


def test_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for the laptop\nalpha\n\n beta \n")
    with Served("--api-key", "one,two", "--api-key-file", keys, "--host", "0.0.0.0") as served:
        assert "warning" not in served.said
        for key in ("one", "two", "alpha", "beta"):
            assert served.ask("GET", "/props", authorization=f"Bearer {key}")[0] == 200
        for key in ("", "# for the laptop", "onetwo"):
            status, answer = served.ask("GET", "/v1/models/pydoc", authorization=f"Bearer {key}")
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert served.ask("GET", "/v1/models")[1]["data"][0]["id"] == "pydoc"
        assert served.ask("GET", "/health")[0] == 200


def test_a_wide_address_without_a_key_warns() -> None:
    with Served(LLAMA_ARG_HOST="0.0.0.0") as served:
        assert "warning: other machines can reach this address" in served.said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reranking"], "--reranking: no reranker is supported yet"),
        (["--no-jinja"], "--no-jinja: chats always go through a template"),
        (["--no-cont-batching"], "running answers always share their steps"),
        (["-hf", "user/model"], "-hf: ggrun downloads nothing"),
        (["--lora", "x.gguf"], "--lora: adapters and control vectors are not supported"),
        (["--port", "70000"], "--port 70000 is out of range"),
        (["--slot-save-path", "nowhere"], "--slot-save-path nowhere is no folder"),
        (["--api-key-file", "nowhere"], "nowhere cannot be read"),
        (["--chat-template-kwargs", "[]"], "must be a JSON object"),
        (["--ssl-key-file", "x"], "https needs both"),
        (["--host", "nosuchhost.invalid"], "is no address of this machine"),
        (["-c", "900000000"], "pydoc cannot be opened: "),
        (["-m", "nosuch.gguf"], "there is no file nosuch.gguf"),
        (["--temp", "nan"], "--temp must be a number"),
    ],
)
def test_what_cannot_be_met_is_one_sentence(arguments: list[str], said: str) -> None:
    done = ggrun("serve", *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_flags_of_llama_server_start_it() -> None:
    line = "-t 1 -tb 1 --prio 1 --poll 50 -fa auto -ngl 0 --no-warmup -kvu --log-disable --no-mmproj -np 2 -c 512 -b 256 -ub 128"
    line += " -ctk q8_0 -ctv q8_0 --cache-reuse 256 -sps 0.5 --temp 0.2 --top-k 20 --jinja --reasoning-format none -to 60 --slots"
    line += " --threads-http 4 -a one,two"
    variables = {"LLAMA_ARG_MMPROJ_OFFLOAD": "1", "LLAMA_ARG_ENDPOINT_METRICS": "enabled", "LLAMA_ARG_NO_UI": "1"}
    with Served(*line.split(), **variables) as served:
        assert served.ask("GET", "/metrics")[0] == 200
        assert "with a page" not in served.said
        assert "--prio has no effect" in served.said
        assert "LLAMA_ARG_MMPROJ_OFFLOAD has no effect" in served.said
        assert "one: a conversation may grow to 512 tokens (-c); 2 slots (-np)" in served.said
        assert served.ask("POST", "/v1/chat/completions", CHAT)[1]["model"] == "one"


def test_thoughts_end_in_time(tmp_path: Path) -> None:
    template = tmp_path / "thinker.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}")
    flags = ("--reasoning-budget", "6", "--reasoning-budget-message", " Enough.", "--ignore-eos", "--temp", "0", "--context-shift")
    with Served("--chat-template-file", template, *flags) as server:
        body = {"messages": CHAT["messages"], "max_tokens": 40}
        _, answer = server.ask("POST", "/v1/chat/completions", body)
        message, usage = answer["choices"][0]["message"], answer["usage"]
        assert message["reasoning_content"].endswith(" Enough.")
        assert message["content"]
        assert "</think>" not in message["content"]
        assert 6 < usage["completion_tokens_details"]["reasoning_tokens"] < 20
        assert usage["completion_tokens"] == 40
        deltas = [frame["choices"][0]["delta"] for frame in server.frames("/v1/chat/completions", {**body, "stream": True})[:-1]]
        assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer", "minimum": 0, "maximum": 99}}}
        _, answer = server.ask("POST", "/v1/chat/completions", {**body, "response_format": form, "thinking_budget_tokens": 3})
        assert answer["choices"][0]["message"]["content"].strip().isdigit()
        assert answer["choices"][0]["message"]["reasoning_content"].endswith(" Enough.")
        free = server.ask("POST", "/v1/chat/completions", {**body, "thinking_budget_tokens": -1})[1]["choices"][0]["message"]
        assert not free["content"]
        asked = {**body, "thinking": {"type": "enabled", "budget_tokens": 2}}
        thought, said = server.ask("POST", "/v1/messages", asked)[1]["content"]
        assert thought["thinking"].endswith(" Enough.")
        assert said["text"]


def test_a_prefix_is_before_everything() -> None:
    with Served("--api-prefix", "/llm/", "--metrics") as server:
        assert f"listening at http://127.0.0.1:{server.port}/llm, with a page" in server.said
        status, answer = server.ask("POST", "/llm/v1/chat/completions", CHAT)
        assert status == 200
        assert answer["choices"][0]["message"]["content"]
        assert server.ask("POST", "/v1/chat/completions", CHAT)[0] == 404
        assert 'path="/v1/chat/completions"' in server.ask("GET", "/llm/metrics")[1].replace("route=", "path=")
