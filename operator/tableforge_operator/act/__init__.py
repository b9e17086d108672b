"""Makes the API server have what was decided, and nothing that was not."""
