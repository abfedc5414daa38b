"""The ledger as an auditor sees it: read from a home or an export, verified, written as an export.

The one rule: it only reads, needs no running orchestrator, and believes nothing but signatures.
"""
