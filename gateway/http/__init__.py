"""What HTTP asks of a hop: headers that go along, conditions and ranges, problems, answers streamed through."""

from __future__ import annotations

from gateway.http.answering import HEAD_LIMITS, HELD_HEAD_BYTES, AnswerConnector, AnswerHandler
from gateway.http.answers import (
    SENT_BYTES,
    SERVER_NAME,
    UNREAD,
    delivered,
    passed_through,
    reset,
    strip_aiohttp_headers,
)
from gateway.http.conditions import chosen
from gateway.http.forwarding import (
    REQUEST_ID,
    TRACEPARENT,
    HeaderRules,
    believed,
    cgi_name,
    check_forwarded_header,
    check_loop,
    check_static_header,
    end_to_end,
    outbound_headers,
    proxy_status,
    request_id,
    via,
)
from gateway.http.lent_connection import ConnectionLost, LentConnection
from gateway.http.obs_text import ForwardedResponse, restore_obs_text
from gateway.http.origin import TOKEN, UNIX_PEER, Family, TrustedNetworks, client_address, peer_address
from gateway.http.prefix import PREFIX, cut, forwarded_prefix, is_prefix, prefixed, without_base
from gateway.http.problems import CHALLENGE, problem, problem_document, severity
from gateway.http.query import with_query
from gateway.http.request_bodies import Body, ChunkedBody, LengthBody
from gateway.http.request_heads import ENOUGH_BYTES, MAX_FIELDS, RECEIVE_BYTES, checked_head, end_of_head
from gateway.http.sockets import acked_bytes, destination_socket, unsent_bytes
from gateway.http.target import is_host, origin_form, requested_host
from gateway.http.tls import ServerTls, TlsFileError, check_readable, load_pair
from gateway.http.ulids import ULID, began_at, new_ulid
from gateway.http.urls import (
    PATH_SAFE,
    PORTS,
    authority,
    destination_url,
    origin_path,
    split_url,
    without_secrets,
)

__all__ = [
    "CHALLENGE",
    "ENOUGH_BYTES",
    "HEAD_LIMITS",
    "HELD_HEAD_BYTES",
    "MAX_FIELDS",
    "PATH_SAFE",
    "PORTS",
    "PREFIX",
    "RECEIVE_BYTES",
    "REQUEST_ID",
    "SENT_BYTES",
    "SERVER_NAME",
    "TOKEN",
    "TRACEPARENT",
    "ULID",
    "UNIX_PEER",
    "UNREAD",
    "AnswerConnector",
    "AnswerHandler",
    "Body",
    "ChunkedBody",
    "ConnectionLost",
    "Family",
    "ForwardedResponse",
    "HeaderRules",
    "LengthBody",
    "LentConnection",
    "ServerTls",
    "TlsFileError",
    "TrustedNetworks",
    "acked_bytes",
    "authority",
    "began_at",
    "believed",
    "cgi_name",
    "check_forwarded_header",
    "check_loop",
    "check_readable",
    "check_static_header",
    "checked_head",
    "chosen",
    "client_address",
    "cut",
    "delivered",
    "destination_socket",
    "destination_url",
    "end_of_head",
    "end_to_end",
    "forwarded_prefix",
    "is_host",
    "is_prefix",
    "load_pair",
    "new_ulid",
    "origin_form",
    "origin_path",
    "outbound_headers",
    "passed_through",
    "peer_address",
    "prefixed",
    "problem",
    "problem_document",
    "proxy_status",
    "request_id",
    "requested_host",
    "reset",
    "restore_obs_text",
    "severity",
    "split_url",
    "strip_aiohttp_headers",
    "unsent_bytes",
    "via",
    "with_query",
    "without_base",
    "without_secrets",
]
