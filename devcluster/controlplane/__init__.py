"""The control plane: credentials, command lines and the objects a fresh cluster starts with."""
