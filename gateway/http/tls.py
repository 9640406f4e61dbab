"""Files of certificates and keys, what is said of those that cannot be used, and TLS of a listener.

A listener's files are looked at when a connection comes, once a second at most, or when somebody says so (SIGHUP). A
pair that cannot be used then changes nothing, and is told once. Connections that stand keep what they had.
"""

from __future__ import annotations

import logging
import os
import ssl
import time

__all__ = ["ServerTls", "TlsFileError", "check_readable", "load_authorities", "load_pair"]


log = logging.getLogger("gateway.server")

_LOOK_SECONDS = 1.0


class TlsFileError(Exception):
    """A file of a `tls` table cannot be used; `key` is which."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def check_readable(which: str, path: str) -> None:
    """Raises TlsFileError."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise TlsFileError(which, f"{path}: {error.strerror}") from error


def load_authorities(context: ssl.SSLContext, ca: str) -> None:
    """Whom it believes, too. Raises TlsFileError."""
    try:
        context.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        raise TlsFileError("ca", "it holds no certificates") from error


def load_pair(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    """What it shows. Raises TlsFileError."""
    try:
        context.load_cert_chain(cert, key, password="")  # a locked key would ask the terminal for its password
    except (OSError, ValueError) as error:
        which = "cert" if not _holds_certificates(cert) or key is None else "key"
        raise TlsFileError(which, "the certificate and its key are not of one pair, or not PEM") from error


def _holds_certificates(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True


class ServerTls:
    """`cert` with its chain, and `key` unless that is in it; `ca`: whose certificates clients may show, if they do.

    Raises TlsFileError for files that cannot be used.
    """

    def __init__(self, *, cert: str, key: str | None = None, ca: str | None = None) -> None:
        self._cert, self._key, self._ca = cert, key, ca
        self._seen = self._versions()
        self._context = self._made()
        self._looked_at = time.monotonic()

    def current(self) -> ssl.SSLContext:
        """For the next connection."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            if (seen := self._versions()) != self._seen:
                self.reload(seen)
        return self._context

    def reload(self, seen: object = None) -> None:
        """Read the files now."""
        self._seen = self._versions() if seen is None else seen
        try:
            self._context = self._made()
        except TlsFileError as error:
            log.warning("the certificate stays that was read before: tls.%s: %s", error.key, error)
        else:
            log.info("the certificate was read anew")

    def _made(self) -> ssl.SSLContext:
        for which, path in (("cert", self._cert), ("key", self._key), ("ca", self._ca)):
            if path is not None:
                check_readable(which, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, self._cert, self._key)
        if self._ca is not None:
            load_authorities(context, self._ca)
            context.verify_mode = ssl.CERT_OPTIONAL  # which routes need one, their access says
        return context

    def _versions(self) -> object:
        return [_version(path) for path in (self._cert, self._key, self._ca) if path is not None]


def _version(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
