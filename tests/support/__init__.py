"""Real parts for tests: Redis, data-plane processes, a scripted peer, the ledger that judges delivery."""
