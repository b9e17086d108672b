"""The rooms with members on this instance: what arrives for them, in which order, and who gets it.

`ring` and `room` are plain bookkeeping, `hub` ties them to the broker, `outlet` is where frames leave.
"""
