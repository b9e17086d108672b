"""Who a client is and what it may do: keys that may change, tokens, rights.

`keys` reads secrets that live in files, `tokens` turns a token into an `Identity`, `access` says which rooms
an identity may use.
"""
