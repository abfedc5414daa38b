"""The plan language IML v2: reading a plan, checking it, and filling its templates.

The one rule: a plan that `validate` let pass can be run as it stands; what this version does not
act on is refused there. Deliberately absent: files, clocks, nodes; texts and manifests come in.
"""
