"""What is asked for, and who asks: what each kind of credential is given, and makes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from ipaddress import ip_address

from multidict import CIMultiDict, CIMultiDictProxy

from gateway.errors import Forbidden, NotMultipart, TooLarge, Unauthenticated
from gateway.model import Limits, Part, text

__all__ = ["ANYBODY", "SCOPES", "Asked", "Caps", "Identity", "bearer", "is_loopback"]

_MEDIA_TYPE = re.compile(r"[!#$&^_.+\w-]+/[!#$&^_.+\w-]+", re.ASCII)
"""RFC 6838 4.2: one, and not two of which readers choose."""
SCOPES = ("upload", "read", "delete", "download")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's head, as far as it says who may."""

    scope: str
    """One of SCOPES: what it asks for."""
    route: str
    """The path of a route, or that of what is to be read, without the name for people: what urls are signed for."""
    method: str = "POST"
    query: str = ""
    headers: CIMultiDictProxy[str] | CIMultiDict[str] = field(default_factory=CIMultiDict)
    upload: str = ""
    """The id that an upload is to have; of anything else, one that is made."""
    request_id: str = ""
    """The client's own X-Request-ID, or that."""
    peer: str = ""
    """The client's address, by whom we trust."""
    content_type: str = ""
    content_length: int | None = None
    """None: not declared."""
    certificate: Mapping[str, object] | None = None
    """The client's own, as `ssl` tells it."""
    traceparent: str = ""
    """For whom else has to be asked, where this gateway makes traces."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a credential allows at most, beside the configured limits."""

    max_bytes: int | None = None
    """Of a whole body; None is no cap."""
    types: tuple[tuple[str, ...], ...] = ()
    """Globs on the media type of a file, of each of these lists one."""
    filenames: tuple[str, ...] = ()
    """What each of them is, a file has to be called."""

    @classmethod
    def of(cls, *, max_bytes: int | None = None, types: Sequence[str] = (), filename: str | None = None) -> Caps:
        """As one credential says it."""
        return cls(max_bytes, (tuple(types),) if types else (), () if filename is None else (filename,))

    def and_also(self, other: Caps) -> Caps:
        """Only what both allow."""
        both = [size for size in (self.max_bytes, other.max_bytes) if size is not None]
        return Caps(min(both, default=None), self.types + other.types, self.filenames + other.filenames)

    def applied(self, limits: Limits) -> Limits:
        """The limits, where these are not stricter."""
        if self.max_bytes is None:
            return limits
        most = min(self.max_bytes, limits.max_body_bytes or self.max_bytes)
        return replace(limits, max_body_bytes=max(most, 1))  # 0 is unlimited there; see check_length

    def check_length(self, length: int | None) -> None:
        """Raises TooLarge where no byte is allowed, and the body is not known to have none."""
        if self.max_bytes == 0 and length != 0:
            raise TooLarge("no byte is allowed here", limit=0)

    @property
    def are_of_files(self) -> bool:
        """Whether `check` ever raises."""
        return bool(self.types or self.filenames)

    def check(self, part: Part) -> None:
        """Raises NotMultipart (415) or Forbidden for a file that it does not allow."""
        if not part.is_file:
            return
        media_type = text(part.content_type or b"").partition(";")[0].strip().lower()
        for globs in self.types:
            if not _MEDIA_TYPE.fullmatch(media_type) or not any(
                fnmatchcase(media_type, glob.lower()) for glob in globs
            ):
                raise NotMultipart(f"files of the type {media_type or '(none)'} are not allowed here")
        if any(part.filename != name for name in self.filenames):
            raise Forbidden("files of this name are not allowed here")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, as far as that is known."""

    name: str = ""
    """`key:ci`, `jwt:alice`: the kind stands before it, so that nobody is taken for another kind's. Empty: nobody."""
    by: str = "none"
    """The kind of credential."""
    scopes: frozenset[str] = frozenset(SCOPES)
    caps: Caps = Caps()
    metadata: Mapping[str, object] = field(default_factory=dict)
    """For the manifest."""
    fields: tuple[tuple[str, str], ...] = ()
    """Name and value, for relays to send along."""
    use: str = ""
    """What was used up with this one, and is given back if nothing comes of it."""

    others: tuple[Identity, ...] = ()
    """Who that is, too: by what other routes ask for. What is theirs can be read."""

    def may_see(self, owner: str) -> bool:
        """Whether an upload of this owner's is there for this one. Nobody's is there for all; a signed url that names
        nobody is the word of whoever has its secret.
        """
        own = not owner or self.name == owner or (self.by == "signed" and not self.name)
        return own or any(other.may_see(owner) for other in self.others)


ANYBODY = Identity()


def bearer(asked: Asked) -> str | None:
    """The token of Authorization: Bearer (RFC 6750 2.1), the scheme in any case; None for none, or another scheme.

    Raises Unauthenticated where it is given twice.
    """
    values = asked.headers.getall("Authorization", ())
    if len(values) > 1:
        raise Unauthenticated
    scheme, _, token = values[0].strip().partition(" ") if values else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
