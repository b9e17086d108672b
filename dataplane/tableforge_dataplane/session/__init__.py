"""One client: who it is, what it may do, which rooms it is in, and what it waits for."""
