"""The only part of the message path that talks to Redis.

`publisher` writes rooms' logs, `subscriber` receives what was written, `recovery` reads the logs again,
`connection` is the wire between them and Redis, and `broker` puts them together.
"""
