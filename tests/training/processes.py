"""Short-lived processes for tests that kill, forked from a server that has imported everything: they start at once."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from diptych.core import devices

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("tests.training.toy_blocks", "diptych.training.sharding", "diptych.training.sharded_checkpoint"),
        *("tests.training.toy", "torch.utils.tensorboard", "torch._dynamo"),
    ]
)


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = _context.Process(target=_in_float32, args=(target, *arguments))
    process.start()
    return process


def _in_float32(target: Callable[..., None], *arguments: object) -> None:
    """As the tests that start it (`same_arithmetic`)."""
    devices.CPU_BF16 = ()
    target(*arguments)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return once the condition holds; fail the test when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def finish(process: BaseProcess, seconds: float = 600) -> int | None:
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


def two_processes(target: Callable[..., None], *arguments: object) -> list[int | None]:
    """Start two with what torchrun puts into the environment, given as the last argument; returns their exit codes."""
    return processes(2, target, *arguments)


def processes(count: int, target: Callable[..., None], *arguments: object) -> list[int | None]:
    """As `two_processes`, any number of them."""
    return [finish(process) for process in start_ranks(count, target, *arguments)]


def start_ranks(count: int, target: Callable[..., None], *arguments: object) -> list[BaseProcess]:
    """Processes that have just been started, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [start(target, *arguments, rank) for rank in ranks]
