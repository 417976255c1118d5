"""Addresses, sockets and threads of the server."""

import asyncio
import os
import signal
import socket
import threading
import time

import pytest

from ggrun.errors import GgrunError
from ggrun.server.background import in_thread
from ggrun.server.listener import bind, serve
from ggrun.server.settings import Settings
from tests.unit.fake_shelf import fake_app


def test_two_addresses_share_a_port_that_was_picked() -> None:
    one, two = bind(("127.0.0.1", "127.0.0.2"), 0)
    with one, two:
        assert one.getsockname()[1] == two.getsockname()[1] != 0
        for host in ("127.0.0.1", "127.0.0.2"):
            with socket.create_connection((host, one.getsockname()[1]), 5):
                pass


def test_localhost_is_found_by_its_number() -> None:
    (sock,) = bind(("localhost",), 0)
    with sock, socket.create_connection(("127.0.0.1", sock.getsockname()[1]), 5):
        pass


def test_a_port_in_use_is_told_and_nothing_stays_bound() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(GgrunError, match=f"port {port} of 127.0.0.2 is in use"):
            bind(("127.0.0.1", "127.0.0.2"), port)
        with socket.socket() as again:
            again.bind(("127.0.0.1", port))  # the first address was given back


@pytest.mark.parametrize(("host", "said"), [("nosuchhost.invalid", "no address of this machine"), ("192.0.2.1", "cannot be listened at")])
def test_addresses_that_are_not_ours(host: str, said: str) -> None:
    with pytest.raises(GgrunError, match=said):
        bind((host,), 0)


def test_work_in_a_thread() -> None:
    async def one() -> tuple[int, str]:
        number = await in_thread(lambda: 7, lambda result: None)
        name = await in_thread(lambda: threading.current_thread().name, lambda result: None)
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0, lambda result: None)
        return number, name

    assert asyncio.run(one()) == (7, "ggrun-background")


def test_a_result_nobody_waits_for_is_given_back() -> None:
    unwanted: list[int] = []

    async def one() -> None:
        going = threading.Event()
        future = in_thread(lambda: (going.wait(5), 7)[1], unwanted.append)
        future.cancel()
        going.set()
        end = time.monotonic() + 5
        while not unwanted and time.monotonic() < end:
            await asyncio.sleep(0.01)

    asyncio.run(one())
    assert unwanted == [7]


def test_a_loop_that_is_gone_is_no_fault() -> None:
    unwanted: list[int] = []
    going = threading.Event()

    async def one() -> None:
        in_thread(lambda: (going.wait(5), 7)[1], unwanted.append)

    asyncio.run(one())
    going.set()
    end = time.monotonic() + 5
    while not unwanted and time.monotonic() < end:
        time.sleep(0.01)
    assert unwanted == [7]


def test_a_signal_while_it_starts_is_no_failure() -> None:
    sockets = bind(("127.0.0.1",), 0)
    said: list[int] = []

    async def start() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while sockets[0].fileno() >= 0:
            await asyncio.sleep(0)
        said.append(sockets[0].getsockname()[1])

    serve(fake_app(), sockets, Settings(), start)
    assert not said
