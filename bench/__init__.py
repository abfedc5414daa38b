"""Measurements of imlmesh: `python -m bench [NAME ...]`, a JSON line each.

The one rule: a figure stands beside a reference of the same run, for machines differ and drift.
"""
