"""Ray: a head with two CPUs on this machine, actions as remote functions."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

# Both are read when Ray is imported: it reports nothing to its makers, and without clusters, off on
# some systems only by default, its servers listen on loopback instead of every interface.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray

from bench.peers.far import serve

STORE_BYTES = 200 * 1024 * 1024


@ray.remote
def noop() -> None:
    """The trivial action."""


class OnRay:
    version = ray.__version__

    def flood(self, count: int) -> None:
        ray.get([noop.remote() for _ in range(count)])


@contextlib.contextmanager
def start() -> Iterator[OnRay]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=tempfile.gettempdir(),
    )
    try:
        yield OnRay()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    serve(start)
