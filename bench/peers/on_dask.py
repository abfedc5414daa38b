"""Dask: a local cluster of two processes, its scheduler beside the client.

Set to hand out work without holding back (`worker-saturation`), which is quicker for short actions.
"""

import contextlib
import logging
from collections.abc import Iterator

import dask
import distributed

from bench.peers.far import serve


def noop(_: int) -> None:
    """The trivial action."""


class OnDask:
    version = distributed.__version__

    def __init__(self, client: distributed.Client) -> None:
        self._client = client

    def flood(self, count: int) -> None:
        self._client.gather(self._client.map(noop, range(count), pure=False))


@contextlib.contextmanager
def start() -> Iterator[OnDask]:
    dask.config.set({"distributed.scheduler.worker-saturation": "inf"})
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield OnDask(client)


if __name__ == "__main__":
    serve(start)
