"""imlmesh beside Ray, Celery and Dask: `python -m bench.peers`, a JSON line each.

The one rule: a peer and ours take turns on the same machine, so that ratios mean something. What
runs a peer (`far`, `on_*`, `noop_app`, `measures`) is loaded by the Python of `.peers`, which has
nothing of imlmesh installed.
"""
