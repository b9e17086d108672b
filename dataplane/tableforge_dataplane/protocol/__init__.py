"""What clients and server say to each other.

`commands` and `events` are what the session knows; a dialect (`native` is the first) turns frames into
commands and events into frames; `payload` and `names` are the rules both stand on.
"""
