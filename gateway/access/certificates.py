"""Client certificates, which TLS has verified: who that is, their subject says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.access.asked import Asked, Identity
from gateway.errors import Unauthenticated

__all__ = ["ClientCertificates"]

_MOST_CHARACTERS = 256


class ClientCertificates:
    """By the common name of the subject, of which there is one."""

    kind = "certificate"

    async def identify(self, asked: Asked) -> Identity | None:
        """Raises Unauthenticated for a subject without a name, or with two."""
        if not asked.certificate:
            return None
        subject: Iterable[Any] = asked.certificate.get("subject", ())  # type: ignore[assignment]
        names = [value for pairs in subject for name, value in pairs if name == "commonName"]
        if len(names) != 1 or not 0 < len(names[0]) <= _MOST_CHARACTERS:
            raise Unauthenticated
        return Identity(f"cert:{names[0]}", self.kind)
