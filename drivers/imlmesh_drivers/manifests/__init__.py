"""The manifests of the built-in drivers as JSON, one file a module, generated from the code.

The one rule: nobody edits them; `python -m imlmesh_drivers.manifests --write` makes them and
`--check` says whether they are current.
"""
