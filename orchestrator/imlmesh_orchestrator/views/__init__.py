"""Answers to people's questions, as plain dicts of the API.

The one rule: nothing here writes, and nothing here runs on the event loop but a look at the core's
state; questions to the store go through a `Reader`.
"""
