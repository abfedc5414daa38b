"""Who is believed, and how those who no longer are get shut out: trust, rosters, sessions, revocation.

The one rule: all of it is told anew at each start, so a crash between two deeds is repaired by the next.
"""
