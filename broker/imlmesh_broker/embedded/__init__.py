"""The broker for a machine that has no other: MQTT 3.1.1 in a process of its own.

The one rule: a client that misbehaves ends alone, and what it sends or leaves unread is bounded.
Deliberately absent: QoS 2, stored sessions, MQTT 5, listeners without certificates.
"""
