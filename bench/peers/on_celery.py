"""Celery: two pool processes, and a Redis of its own as broker and store of results.

Redis keeps nothing on disk here.
"""

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import celery
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from bench.peers.far import WAIT_S, child, serve


class OnCelery:
    version = celery.__version__

    def __init__(self, noop: Any) -> None:
        self._noop = noop

    def flood(self, count: int) -> None:
        for result in [self._noop.delay() for _ in range(count)]:
            result.get(timeout=WAIT_S)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a Redis that listens on loopback and answers."""
    port = free_port()
    address = ("--bind", "127.0.0.1", "--port", str(port))
    with child("redis-server", *address, "--save", "", "--dir", tempfile.gettempdir()):
        patience = Retry(ConstantBackoff(0.05), 200)
        with Redis(port=port, retry=patience, retry_on_error=[RedisConnectionError]) as redis:
            redis.ping()
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def start() -> Iterator[OnCelery]:
    with redis_server() as url:
        os.environ["PEER_REDIS"] = url
        pool = "worker --pool prefork --concurrency 2 --loglevel error"
        quiet = "--without-gossip --without-mingle --without-heartbeat"
        application = "--app bench.peers.noop_app"
        with child(sys.executable, "-m", "celery", *f"{application} {pool} {quiet}".split()):
            from bench.peers.noop_app import noop

            yield OnCelery(noop)


if __name__ == "__main__":
    serve(start)
