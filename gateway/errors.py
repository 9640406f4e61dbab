"""What can go wrong, by whose fault.

Every error that a client can be told about is a leaf here; the class carries the status, the slug of
its problem type and its title (RFC 9457), an instance carries the detail and the members that help to
act on it. Rooms raise leaves; `responses` turns them into `application/problem+json`; nobody else
knows about statuses. Foreign exceptions are translated in the room that met them, `from exc`.
"""

from __future__ import annotations

import re
from typing import ClassVar

__all__ = [
    "LEAVES",
    "AccessUnavailable",
    "BadMultipart",
    "Busy",
    "ClientFault",
    "ClientGone",
    "Conflict",
    "DigestMismatch",
    "Draining",
    "FlowFailed",
    "FlowFault",
    "FlowStalled",
    "Forbidden",
    "GatewayError",
    "HeadTooLarge",
    "Incomplete",
    "InternalError",
    "LengthRequired",
    "LoopDetected",
    "Malformed",
    "MethodNotAllowed",
    "MisdirectedRequest",
    "NoDescriptors",
    "NoRoute",
    "NotFound",
    "NotMultipart",
    "PreconditionFailed",
    "RangeNotSatisfiable",
    "Refused",
    "RefusedByHook",
    "Rejected",
    "SinkFault",
    "SinkFull",
    "SinkRefused",
    "SinkTimeout",
    "SinkUnavailable",
    "Stalled",
    "TargetTooLong",
    "TooLarge",
    "TooManyParts",
    "TooManyRequests",
    "Truncated",
    "Unauthenticated",
    "UnsupportedTransferCoding",
]


class GatewayError(Exception):
    """Something that the client is told about. `members` are further members of the problem document."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after_seconds: ClassVar[int | None] = None

    def __init__(self, detail: str = "", /, **members: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members

    @classmethod
    def slug(cls) -> str:
        """The last segment of the problem type: `TooLarge` -> `too-large`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


# -- refused on the headers alone, nothing of the body was read


class Refused(GatewayError):
    """The request may not come in."""

    identity = ""
    """Who was refused, for the log, as far as that is known; nobody is told."""


class Forbidden(Refused):
    status, title = 403, "That is not allowed"


class NotFound(Refused):
    status, title = 404, "There is nothing here"


class MethodNotAllowed(Refused):
    status, title = 405, "This resource does not take that method"


class Conflict(Refused):
    status, title = 409, "It is in use"


class LengthRequired(Refused):
    status, title = 411, "The body has to declare its length"


class PreconditionFailed(Refused):
    status, title = 412, "It is not in the state that the request asks for"


class TargetTooLong(Refused):
    status, title = 414, "The target of the request is too long"


class NotMultipart(Refused):
    status, title = 415, "This body cannot be taken"


class RangeNotSatisfiable(Refused):
    status, title = 416, "The range lies outside of the file"


class MisdirectedRequest(Refused):
    status, title = 421, "This gateway does not answer for that host"


class HeadTooLarge(Refused):
    status, title = 431, "The head of the request is too large"


class UnsupportedTransferCoding(Refused):
    status, title = 501, "Only the transfer coding chunked is understood"


class LoopDetected(Refused):
    status, title = 508, "The request has come through this gateway before"


class Unauthenticated(Refused):
    """None of the credentials that are asked for, or a broken one: which, and why, is not told."""

    status, title = 401, "Valid credentials are needed"


class TooManyRequests(Refused):
    """Of one client, or one identity: others are served. `retry_after` says in how many seconds to try again."""

    status, title = 429, "You have as much as one may have"


class RefusedByHook(Refused):
    """The answer is that of the application that was asked; the status here is for the log."""

    status, title = 403, "The application refused it"

    answer_status = 403
    answer = b""
    content_type = ""
    challenge = ""
    """WWW-Authenticate, of a 401."""


class AccessUnavailable(Refused):
    status, title, retry_after_seconds = 503, "Who may do this cannot be found out", 5


class Busy(Refused):
    status, title, retry_after_seconds = 503, "All slots are taken", 2


class Draining(Refused):
    status, title, retry_after_seconds = 503, "The gateway is shutting down", 5


# -- the client's bytes


class ClientFault(GatewayError):
    """The body broke a rule; nothing of it is kept."""


class BadMultipart(ClientFault, ValueError):
    """What a reader of multipart raises: for users of aiohttp it is what the stock reader raises, a ValueError."""


class Malformed(BadMultipart):
    status, title = 400, "The body or its headers are malformed"


class Truncated(BadMultipart):
    status, title = 400, "The body ended before it was whole"


class Stalled(ClientFault):
    status, title = 408, "The request came too slowly"


class TooLarge(BadMultipart):
    status, title = 413, "Something is larger than allowed"


class TooManyParts(BadMultipart):
    status, title = 413, "The body has more parts than allowed"


class DigestMismatch(ClientFault):
    status, title = 400, "The bytes are not those that were declared"


class NoRoute(ClientFault):
    status, title = 422, "No rule takes this file"


class Rejected(ClientFault):
    """A flow's own verdict; flows know it as `gateway.flows.Reject`."""

    status, title = 422, "A flow rejected this file"


class ClientGone(ClientFault):
    """The client hung up: nobody is left to answer. The status is for the log only (nginx's 499)."""

    status, title = 499, "The client went away"


# -- a destination or a store


class SinkFault(GatewayError):
    """A place that parts go to failed; `sink` names it."""


class SinkRefused(SinkFault):
    status, title = 502, "A server behind the gateway gave no good answer"


class Incomplete(SinkFault):
    """A sink failed after another one had committed; `kept` lists the receipts of what stays."""

    status, title = 502, "The upload was kept only in part"


class SinkUnavailable(SinkFault):
    status, title, retry_after_seconds = 503, "A server behind the gateway cannot be reached", 10


class NoDescriptors(SinkFault):
    """The process has no descriptor left for a sink, which is not to blame."""

    status, title, retry_after_seconds = 503, "The gateway has too many files and connections open", 2


class SinkTimeout(SinkFault):
    status, title = 504, "A server behind the gateway took too long"


class SinkFull(SinkFault):
    status, title = 507, "A store is full"


# -- a flow


class FlowFault(GatewayError):
    """A flow failed; `flow` and `part` name it and the file that it was given."""


class FlowFailed(FlowFault):
    status, title = 500, "A flow failed"


class FlowStalled(FlowFault):
    status, title = 504, "A flow took too long"


# -- anything else


class InternalError(GatewayError):
    """A mistake of ours; the detail stays in the log."""


def _leaves(cls: type[GatewayError]) -> list[type[GatewayError]]:
    subclasses = cls.__subclasses__()
    return [leaf for sub in subclasses for leaf in _leaves(sub)] if subclasses else [cls]


LEAVES: list[type[GatewayError]] = _leaves(GatewayError)
"""Every error that can reach a client, in the order of this file; the table of docs/errors.md is checked against it."""
