"""The nouns: what every room talks about. Plain data, no behaviour beyond its own invariants.

Sizes are in bytes. `None` means unknown: it is never replaced by a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

__all__ = [
    "ENCODING_HEADERS",
    "Count",
    "Entry",
    "Limits",
    "Manifest",
    "Output",
    "Part",
    "Receipt",
    "Seconds",
    "Upload",
    "text",
]


class _NoBoolean:
    """For pydantic, which takes true for 1: whoever writes it where a number belongs means something else."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._checked, handler(source))

    @staticmethod
    def _checked(value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("should be a number, not true or false")
        return value


Count = Annotated[int, Ge(0), Le((1 << 63) - 1), _NoBoolean()]
"""Bytes, or a number of things; where it is configured, something negative is a mistake, and so is what no counter of
the system holds.
"""
Seconds = Annotated[float, Ge(0), Le(1e9), _NoBoolean()]
"""Thirty years at most: threads can wait no longer than some hundred."""


class _Nothing(dict[str, Any]):
    """What most parts have of most things: one for all, since a manifest may have a hundred thousand entries."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # a default has to be hashable

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("it is everybody's")


_NOTHING = _Nothing()

ENCODING_HEADERS = (b"content-transfer-encoding", b"content-encoding")
"""Headers of a part that say that its bytes have to be decoded (RFC 2045 6, RFC 9110 8.4)."""
_NO_ENCODINGS = frozenset([b"", b"7bit", b"8bit", b"binary", b"identity"])
"""What changes no byte. Nobody needs to be told: RFC 7578 4.7 deprecates the first of the two for that."""


@dataclass(slots=True)
class Part:
    """One part on its way to the sinks, as its headers described it.

    Slotted but not frozen: a frozen one costs six times as much to make, once per part.
    """

    index: int
    """Its place on the wire, counted from 0, fields included."""
    raw_name: bytes
    """The name as the client meant it: quoting undone, never transcoded."""
    raw_filename: bytes | None
    """The file name likewise; None for a field. `b""` is an empty file input unless bytes follow."""
    content_type: bytes | None
    """The part's own Content-Type, verbatim."""
    own_headers: Sequence[tuple[bytes, bytes]] | None = ()
    """Where they are the usual ones of a form, which `headers` can tell from the rest, None: most parts are such."""
    is_file: bool = False
    """A part with a file name is a file, and so is one without whose type is not text (RFC 7578 4.2); any other is a
    field. A raw body is always a file.
    """

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """All headers of the part in order, names in lower case (of a raw body: the request's)."""
        if self.own_headers is not None:
            return self.own_headers
        filename = b"" if self.raw_filename is None else b'; filename="%b"' % self.raw_filename
        disposition = (b"content-disposition", b'form-data; name="%b"%b' % (self.raw_name, filename))
        return (disposition,) if self.content_type is None else (disposition, (b"content-type", self.content_type))

    @property
    def encodings(self) -> Sequence[tuple[bytes, bytes]]:
        """Its Content-Transfer-Encoding and Content-Encoding, verbatim, names in lower case: where there are any, its
        bytes are not the content itself. Those that change nothing, such as `8bit`, are left out.
        """
        if not self.own_headers:
            return ()
        return [
            (name, value)
            for name, value in self.own_headers
            if name in ENCODING_HEADERS
            and not _NO_ENCODINGS.issuperset(coding.strip(b" \t").lower() for coding in value.split(b","))
        ]

    @property
    def name(self) -> str:
        return text(self.raw_name)

    @property
    def filename(self) -> str | None:
        return None if self.raw_filename is None else text(self.raw_filename)


@dataclass(slots=True)
class Receipt:
    """What a sink gives for a part that it keeps."""

    part: int
    """The index of the part."""
    sink: str
    location: str | None = None
    """Where the part can be fetched from, as a URL or a path on this gateway; None where that is not known."""
    status: int | None = None
    """A destination's status code; None for sinks that are no HTTP destinations."""
    missed: str | None = None
    """Why a best-effort sink does not have it: `lag`, `failed` or `late`."""


@dataclass(slots=True)
class Output:
    """What flows made of a file: what the sinks were given instead of what came in."""

    raw_filename: bytes | None
    raw_content_type: bytes | None
    """Both in UTF-8, as sinks are told: a text with one wide character takes four times as much."""
    size: int = 0
    sha256: str | None = None

    @property
    def filename(self) -> str | None:
        return None if self.raw_filename is None else text(self.raw_filename)

    @property
    def content_type(self) -> str | None:
        return None if self.raw_content_type is None else text(self.raw_content_type)


@dataclass(slots=True)
class Entry:
    """What the manifest says about one part: what came in on the wire, before any flow."""

    part: Part
    size: int = 0
    digests: Mapping[str, str] = _NOTHING
    """Algorithm -> lower-case hex."""
    raw_value: bytes | None = None
    """A field's text in UTF-8, its beginning where it is long; None for a file, and for a field that is not UTF-8."""
    value_truncated: bool = False
    """Whether that is only its beginning."""
    verified: Sequence[str] = ()
    """Algorithms by which the client had declared a digest that was found right."""
    findings: Mapping[str, Mapping[str, object]] = _NOTHING
    """What flows found out, by flow."""
    output: Output | None = None
    """None where the sinks got the bytes and names as they came in."""
    receipts: Sequence[Receipt] = ()
    problem: Mapping[str, object] | None = None
    """Why it is not kept, as a problem document, where the others are (`keep = "each"`)."""

    @property
    def value(self) -> str | None:
        """`raw_value` as text."""
        return None if self.raw_value is None else self.raw_value.decode()


@dataclass(slots=True)
class Manifest:
    upload: str
    entries: list[Entry]
    identity: str = ""
    """Whose it is; empty: nobody's."""
    metadata: Mapping[str, object] = _NOTHING
    partial: bool = False
    """Whether one of the entries has a problem."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One request on its way through the gateway; what a sink is told when it is opened."""

    id: str
    """A ULID: 26 characters, sortable by time, safe in a path."""
    route: str
    """The path of the route that took it."""
    kind: str = "upload"
    """The kind of that route: `upload`, `relay`, `convert` or `opaque`."""
    method: str = "POST"
    query: str = ""
    """The client's query string, as it came."""
    headers: Sequence[tuple[str, str]] = ()
    """All end-to-end headers of the client, credentials among them: each relay selects. What it says about where it
    comes from (Forwarded, X-Forwarded-*) is here only if it is believed.
    """
    content_type: str = ""
    """Of the body as it came in, as its other two framing headers here are."""
    content_length: int | None = None
    """None where it is chunked; 0 where there is no body."""
    multipart: bool = True
    """Whether the body is read as multipart; else it is one file."""
    request_id: str = ""
    """The client's X-Request-ID, or `id`."""
    peer: str = ""
    """The address of who connected; empty where there is none."""
    scheme: str = "http"
    host: str = ""
    """The client's Host."""
    protocol: str = "1.1"
    """The version of HTTP that the client spoke."""
    gateway: str = "gateway"
    """The name of this instance, which it writes into Via."""
    identity: str = ""
    """Whose it is: `key:ci`, `jwt:alice`; empty: nobody's."""
    metadata: Mapping[str, object] = _NOTHING
    """What the application's hook wants to stand in the manifest."""
    fields: Sequence[tuple[str, str]] = ()
    """Name and value of what it wants relays to send along."""
    id_chosen: bool = False
    """Whether the client has chosen `id`, so that another one may come with the same elsewhere."""
    parts_alone: bool = False
    """Whether a sink may complete a part before the upload is whole: each is kept for itself (`keep = "each"`)."""
    traceparent: str = ""
    """The trace that this gateway makes of it (W3C Trace Context), for destinations; empty: none, and what the client
    wrote of one is a header as any other.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes and seconds; 0 = unlimited. These are the keys of `[limits]`; config/gateway.toml has their reasons."""

    # for whoever configures them: a key that is none is a mistake, and a number has to be one
    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    max_body_bytes: Count = 0
    max_file_bytes: Count = 0
    max_parts: Count = 1000
    max_field_bytes: Count = 1 << 20
    max_fields_bytes: Count = 8 << 20
    max_value_bytes: Count = 65536
    max_manifest_bytes: Count = 16 << 20
    max_header_bytes: Count = 16384
    max_headers: Count = 64
    idle_seconds: Seconds = 30
    min_rate_bytes: Count = 1024
    min_answer_rate_bytes: Count = 1024
    deadline_seconds: Seconds = 0
    parallel_parts: Count = 4
    window_bytes: Count = 1 << 20
    stall_seconds: Seconds = 30


def text(raw: bytes) -> str:
    """Bytes from the wire as text to show: UTF-8, else latin-1, which cannot fail. No surrogates."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
