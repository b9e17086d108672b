"""Which web pages may connect."""

from typing import Final

from tableforge_dataplane.contract.origins import ANY, OPAQUE, parse_origins

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


class Origins:
    """Judges `Origin` headers.

    Without a list, all pages may where a token is required: a browser sends no token by itself, so a foreign
    page has none. Where anybody is let in, only pages of the host that is connected to may (on any port, so
    that a development server's page works): else any page that a person opens could talk to an instance on
    that person's own machine or network.
    """

    def __init__(self, allowed: str, *, token_required: bool) -> None:
        """`allowed`: the setting. Raises ValueError where it cannot be read."""
        listed = parse_origins(allowed)
        self._any = ANY in listed or (not listed and token_required)
        self._same_host = not listed and not token_required
        self._exact = frozenset(_with_port(origin) for origin in listed if "*" not in origin)
        self._below = tuple(
            (scheme, rest[1:], port)
            for scheme, rest, port in (_parts(origin) for origin in listed if "://*." in origin)
        )

    def allows(self, origin: str, host: str | None) -> bool:
        """Whether a page of `origin` may connect; `host` is the request's own `Host`."""
        if self._any:
            return True
        origin = origin.strip().lower()
        if origin == OPAQUE or "://" not in origin:
            return origin in self._exact
        if self._same_host:
            return host is not None and _parts(origin)[1] == _host_of(host.strip().lower())
        if _with_port(origin) in self._exact:
            return True
        scheme, name, port = _parts(origin)
        return any(
            scheme == below_scheme and port == below_port and name.endswith(below)
            for below_scheme, below, below_port in self._below
        )


def _host_of(authority: str) -> str:
    if authority.startswith("["):
        return authority.partition("]")[0] + "]"
    return authority.partition(":")[0]


def _parts(origin: str) -> tuple[str, str, str]:
    scheme, _, authority = origin.partition("://")
    host = _host_of(authority)
    return scheme, host, authority[len(host) + 1 :] or _DEFAULT_PORTS.get(scheme, "")


def _with_port(origin: str) -> str:
    if "://" not in origin:
        return origin
    return "{}://{}:{}".format(*_parts(origin))
