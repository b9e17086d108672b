"""The instance among the others: its record and lease in Redis, the fleet's view, the clean-up of the dead.

Everything here stands beside the message path, on a small Redis connection of its own; nothing on the path
ever waits for it.
"""
