"""The Celery application that both of its sides load; `PEER_REDIS` is the URL of their Redis."""

import os

from celery import Celery

app = Celery(broker=os.environ["PEER_REDIS"], backend=os.environ["PEER_REDIS"])
app.conf.update(
    {
        # a flood of short actions is quicker so
        "worker_prefetch_multiplier": 64,
        "broker_connection_retry_on_startup": True,
    }
)


@app.task
def noop() -> None:
    """The trivial action."""
