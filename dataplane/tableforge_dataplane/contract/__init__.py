"""What operator and data plane must agree on. It imports the standard library and msgspec, nothing else.

`settings` names every setting, its variable, default and bounds, and `environment` reads them; `endpoints`
has the ports, paths and mounted files; `fleet` the messages of the internal HTTP API.
"""
