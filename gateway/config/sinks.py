"""What can be configured of sinks: the keys of each kind, each default with its reason in config/gateway.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.http.forwarding import cgi_name, check_forwarded_header, check_static_header
from gateway.http.origin import TOKEN
from gateway.http.urls import destination_url, origin_path
from gateway.model import Count, Seconds
from gateway.sinks.relay.shape import Shape

__all__ = [
    "BUILT_IN_SINKS",
    "DOTTED_PATH",
    "DiscardSettings",
    "DiskSettings",
    "DottedPath",
    "ObjectsSettings",
    "OwnSinkSettings",
    "RelaySettings",
    "SinkSettings",
    "Table",
    "TlsSettings",
    "matching",
    "octal_mode",
    "sink_tag",
]

BUILT_IN_SINKS = ("disk", "objects", "relay", "discard")
DOTTED_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def matching(pattern: str, words: str) -> AfterValidator:
    """A text that matches, or a mistake in words: a pattern says little to who reads it."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(words)
        return value

    return AfterValidator(check)


DottedPath = Annotated[str, matching(DOTTED_PATH, "not of the form package.module:name")]


def _url(url: str) -> str:
    if "@" in re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise ValueError("it has user info: credentials go into headers.Authorization")
    return destination_url(url)


def _health_path(path: str) -> str:
    return origin_path(path) if path else ""


Url = Annotated[str, AfterValidator(_url)]
LENGTHS = ("chunked", "passthrough", "spool", "known")
_NO_ZERO = matching("[^\0]*", "no file name has a zero byte in it")
FileName = Annotated[str, Field(min_length=1), _NO_ZERO]


class Table(BaseModel):
    """Keys that are none of it are mistakes; values are never shown, since they may be secrets."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


def octal_mode(example: str) -> BeforeValidator:
    """Octal, as a text or as TOML writes it (0o640); the gateway itself, the owner, needs what `example` gives it."""
    least = int(example, 8) & 0o700

    def check(value: Any) -> str:
        text = f"{value:o}" if isinstance(value, int) else value
        if not isinstance(text, str) or not re.fullmatch("0?[0-7]{3}", text) or int(text, 8) & least != least:
            raise ValueError(f'should be octal, such as "{example}", with at least that for the owner')
        return f"{int(text, 8):04o}"

    return BeforeValidator(check)


class DiskSettings(Table):
    """A directory of this machine's."""

    type: Literal["disk"]
    root: FileName = "var/uploads"
    fsync: bool = True
    min_free_bytes: Count = 0
    """How much others need there, only they know."""
    keep_seconds: Seconds = 0
    """0: for ever. What is kept for a while only has to be asked for."""
    mode: Annotated[str, octal_mode("0640")] = "0640"
    directory_mode: Annotated[str, octal_mode("0750")] = "0750"
    """Those of its group may read, for backups and the like, and nobody else: uploads are not the world's."""


_BUCKET = re.compile(
    r"(?:(?:s3a?|gs|gcs)://[^/?#]+|(?:az|azure|adl|abfss?)://[^/?#]+(?:/[^/?#]+)?)(?:/[^?#]*)?|memory:///?|file:///[^?#]+"
)
_PREFIX = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[A-Za-z0-9!_.*'()=-]+(?:/[A-Za-z0-9!_.*'()=-]+)*|")


def _bucket(url: str) -> str:
    if not _BUCKET.fullmatch(url):
        raise ValueError("not one of s3://bucket, gs://bucket, az://account/container, file:///directory, memory://")
    return url


class ObjectsSettings(Table):
    """A bucket of S3, or what speaks like it, of GCS or Azure, or what does as if it were one."""

    type: Literal["objects"]
    url: Annotated[str, AfterValidator(_bucket)]
    prefix: Annotated[
        str, matching(_PREFIX.pattern, "not segments of letters, digits and !_.*'()=- between slashes")
    ] = ""
    part_bytes: Annotated[Count, Field(ge=5 << 20, le=5 << 30)] = 16 << 20
    """S3 takes no less than 5 MiB; a file of 160 GB has parts enough."""
    max_part_bytes: Annotated[Count, Field(ge=5 << 20, le=5 << 30)] = 64 << 20
    """Memory, four times for each open file: only for bodies that are declared to be so large."""
    redirect: bool = False
    """Whoever reads has to reach the store then."""
    redirect_seconds: Annotated[Seconds, Field(ge=1, le=604_800)] = 300
    """Longer than it takes to follow a redirect, and not much longer: a url goes from hand to hand."""
    keep_seconds: Seconds = 0

    @model_validator(mode="after")
    def _consistent(self) -> ObjectsSettings:
        if self.max_part_bytes < self.part_bytes:
            raise ValueError(f"max_part_bytes is {self.max_part_bytes}, less than part_bytes")
        if self.redirect and not self.has_server:
            raise ValueError("redirect: nobody can be sent to a directory, or to this memory")
        return self

    @property
    def has_server(self) -> bool:
        """Whether it is somewhere else, and others may reach it."""
        return not self.url.startswith(("file:", "memory:"))

    @property
    def place(self) -> tuple[str, str]:
        """Two sinks with the same one are in each other's way."""
        return self.url.rstrip("/"), self.prefix


def _ways(length: Any) -> str | tuple[str, ...]:
    """A way to tell a destination the length of a body, or a list of ways."""
    ways = (length,) if isinstance(length, str) else length
    if not isinstance(ways, list | tuple) or not ways or any(way not in LENGTHS for way in ways):
        raise ValueError(f"not one of {', '.join(LENGTHS)}, nor a list of them")
    return length if isinstance(length, str) else tuple(ways)


def _boolean(value: Any) -> Any:
    """True or false as a variable has them; anything else as it is."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _expect(value: Any) -> Any:
    """One message for a union, which would give one for each of its arms."""
    value = _boolean(value)
    if isinstance(value, bool) or value == "reused":
        return value
    raise ValueError('should be true, false or "reused"')


def _all_none_or_some(value: Any, pattern: re.Pattern[str] = TOKEN) -> Any:
    """One message, again."""
    value = _boolean(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str) and pattern.fullmatch(one) for one in value):
        return tuple(value)
    raise ValueError("neither true nor false, nor a list of names")


def _all_none_or_parameters(value: Any) -> Any:
    return _all_none_or_some(value, re.compile(".+", re.DOTALL))


Allowed = Annotated[bool | tuple[str, ...], BeforeValidator(_all_none_or_some)]


class TlsSettings(Table):
    """Whom a relay believes, and how it shows itself; paths are of PEM files."""

    ca: FileName | None = None
    cert: FileName | None = None
    key: FileName | None = None
    server_name: Annotated[str, matching(r"[A-Za-z0-9.:_-]+", "not a host name or an address")] | None = None
    verify: bool = True
    """Off only for somebody who says so, and is told at each start."""

    @model_validator(mode="after")
    def _paired(self) -> TlsSettings:
        if self.key is not None and self.cert is None:
            raise ValueError("a key without the certificate that it belongs to, cert")
        return self


def _header_names(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        check_static_header(name, value)
    if len({cgi_name(name) for name in headers}) < len(headers):
        raise ValueError("a name is given twice, or two are one to a CGI")
    return headers


def _forwarded_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        check_forwarded_header(name)
    return names


def _of_upload(fields: dict[str, str]) -> dict[str, str]:
    Shape(add_before=fields)  # its ValueError names the placeholder
    return fields


def _of_files(fields: dict[str, str]) -> dict[str, str]:
    Shape(add_after=fields)
    return fields


def _of_names(names: dict[str, str]) -> dict[str, str]:
    Shape(rename=names)
    return names


PartName = Annotated[str, Field(min_length=1)]


class RelaySettings(Table):
    """Another API: where it is, and in what shape it gets what."""

    type: Literal["relay"]
    url: Url | None = None
    urls: tuple[Url, ...] = ()
    length: Annotated[str | tuple[str, ...], BeforeValidator(_ways)] = "chunked"
    """Any body can be sent so, and nearly every server takes it."""
    spool_dir: Annotated[str, _NO_ZERO] = ""
    replay_bytes: Count = 1 << 20
    """What a small form has; memory per upload."""
    failures_to_open: Count = 3
    open_seconds: Annotated[Seconds, Field(gt=0)] = 10
    health_path: Annotated[str, AfterValidator(_health_path)] = ""
    health_seconds: Annotated[Seconds, Field(gt=0)] = 10
    expect_continue: Annotated[bool | Literal["reused"], BeforeValidator(_expect)] = "reused"
    """A round trip per upload, and a second at a server that ignores it: only where it saves a body."""
    expect_seconds: Annotated[Seconds, Field(gt=0)] = 1
    connect_seconds: Annotated[Seconds, Field(gt=0)] = 10
    write_seconds: Seconds | None = None
    first_byte_seconds: Seconds | None = None
    read_seconds: Seconds | None = None
    total_seconds: Seconds = 0
    max_connections: Count = 0
    """`max_uploads` bounds them already."""
    keepalive_seconds: Seconds = 0
    """To keep connections is worth a round trip, and not every server will be asked before a body."""
    per: Literal["upload", "part"] = "upload"
    """As the client sent it, and all or nothing."""
    rename: Annotated[dict[PartName, PartName], AfterValidator(_of_names)] = {}
    drop: tuple[PartName, ...] = ()
    add_before: Annotated[dict[PartName, str], AfterValidator(_of_upload)] = {}
    add_after: Annotated[dict[PartName, str], AfterValidator(_of_files)] = {}
    """Nothing of these four: a destination gets what the client sent."""
    fields_first_bytes: Count = 0
    """Off: the order of the wire costs no memory."""
    max_outbound_ratio: Count = 100
    """With a request for each file fields go along with each: few forms have more of them than of files."""
    tls: TlsSettings | None = None
    forward_cookies: Allowed = False
    """They are credentials for the gateway's origin; so is what follows."""
    forward_authorization: Allowed = False
    forward_headers: Annotated[tuple[str, ...], AfterValidator(_forwarded_names)] | None = None
    """All: what an API understands only its operator knows."""
    forward_query: Annotated[bool | tuple[str, ...], BeforeValidator(_all_none_or_parameters)] = True
    """All, for the same reason; but for what its url says itself."""
    headers: Annotated[dict[str, str], AfterValidator(_header_names), Field(repr=False)] = {}

    @field_validator("tls")
    @classmethod
    def _over_tls(cls, tls: TlsSettings | None, info: ValidationInfo) -> TlsSettings | None:
        if tls is not None and any(
            url.startswith("http:") for url in [info.data.get("url") or "", *info.data.get("urls", ())]
        ):
            raise ValueError("only of use to urls of https://, and one here is of http://")
        return tls

    @property
    def wants_sha256(self) -> bool:
        """Whether a route has to compute it: a request for each part does so itself."""
        return self.per == "upload" and self.tells_sha256

    @property
    def tells_sha256(self) -> bool:
        """Whether its destinations are told it."""
        return Shape(add_after=self.add_after).wants_sha256

    @property
    def length_modes(self) -> tuple[str, ...]:
        """The ways to tell a length, in the order in which they are tried."""
        return (self.length,) if isinstance(self.length, str) else self.length

    @property
    def shaping_keys(self) -> list[str]:
        """The keys that are set by which a request gets another shape than the client's."""
        keys = [
            key for key in ("rename", "drop", "add_before", "add_after", "fields_first_bytes") if getattr(self, key)
        ]
        return ["per", *keys] if self.per == "part" else keys

    @property
    def all_urls(self) -> tuple[str, ...]:
        """Where it may send: `urls`, or the one `url`."""
        return self.urls if self.url is None else (self.url,)


class DiscardSettings(Table):
    """Reads, counts, and keeps nothing."""

    type: Literal["discard"]


class OwnSinkSettings(BaseModel):
    """A sink of the user's: `type = "package.module:Class"`, the other keys are its keyword arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)
    type: DottedPath

    @property
    def arguments(self) -> dict[str, Any]:
        """What its class is called with."""
        return dict(self.model_extra or {})


def sink_tag(value: Any) -> str:
    """Which settings a sink's `type` asks for; `own` for everything that is not built in."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if kind in BUILT_IN_SINKS else "own"


SinkSettings = Annotated[
    Annotated[DiskSettings, Tag("disk")]
    | Annotated[ObjectsSettings, Tag("objects")]
    | Annotated[RelaySettings, Tag("relay")]
    | Annotated[DiscardSettings, Tag("discard")]
    | Annotated[OwnSinkSettings, Tag("own")],
    Discriminator(sink_tag),
]
