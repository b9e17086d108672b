"""TLS on the clients' port: the certificate as it is on disk now."""

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tableforge_dataplane.contract.settings import WebsocketSettings
from tableforge_dataplane.observability.logging import EventLog

LOOK_EVERY_SECONDS: Final = 1.0
"""How often the files are looked at, at most."""

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has no others."""

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_log = EventLog("tls")

_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """Makes a context from both files and a new one when they change; connections keep the one they have.

    A pair that cannot be used is logged, and the one before stays. Where there was none yet, `problem` says
    what is missing.
    """

    def __init__(self, settings: WebsocketSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = (Path(settings.tls_cert_file), Path(settings.tls_key_file))
        self._minimum = _VERSIONS[settings.tls_min_version]
        self._clock = clock
        self._looked_at = -float("inf")
        self._seen: _Stamp | None = None
        self._context: ssl.SSLContext | None = None
        self._problem: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """For the next handshake; None where there is no usable pair yet."""
        self._look()
        return self._context

    @property
    def problem(self) -> str | None:
        """What to create or mend, in one sentence; None where there is a pair to use."""
        return self.trouble if self._context is None else None

    @property
    def trouble(self) -> str | None:
        """The same, also while an old pair serves on; None where the pair on disk is in use."""
        self._look()
        return self._problem

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY_SECONDS:
            return
        self._looked_at = now
        try:
            seen = tuple(
                (status.st_ino, status.st_mtime_ns, status.st_size)
                for status in (file.stat() for file in self._files)
            )
            if seen == self._seen:
                self._problem = None
                return
            context = self._load()
        except OSError as error:
            # ssl.SSLError, for files that cannot be used or don't belong together, is one too
            self._lose(error)
            return
        renewed = self._context is not None
        self._seen, self._context, self._problem = seen, context, None
        _log.info("certificate_renewed" if renewed else "certificate_loaded", file=str(self._files[0]))

    def _lose(self, error: OSError) -> None:
        what = getattr(error, "reason", None) or error.strerror or str(error)
        certificate, key = self._files
        problem = (
            f"TABLEFORGE_WEBSOCKET_TLS_CERT_FILE={certificate} and TABLEFORGE_WEBSOCKET_TLS_KEY_FILE={key} "
            f"cannot be used ({what}): put a certificate and its key there, both in PEM."
        )
        # the two files may be replaced one after the other: it is looked at again, and told once
        if problem != self._problem:
            _log.warning("certificate_not_used", problem=problem, old_one_stays=self._context is not None)
        self._problem = problem

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._minimum
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        # a callable: one that is asked for on the terminal would stop the whole instance
        context.load_cert_chain(*self._files, password=_no_password)
        return context


def _no_password() -> str:
    raise OSError("the key is encrypted: give it without a password")
