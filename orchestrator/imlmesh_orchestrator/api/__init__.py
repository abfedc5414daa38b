"""The HTTP API: routes to shell and views, on a Unix socket.

The one rule: a route decides nothing; what it answers is a plain dict with a schema name.
"""
