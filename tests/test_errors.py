"""The table of errors: statuses, slugs, titles, and what a client is told to do about them."""

from __future__ import annotations

import inspect
import re

import pytest

from gateway import errors
from gateway.errors import LEAVES, GatewayError

STATUSES = {
    # refused, nothing read
    "Unauthenticated": 401,
    "Forbidden": 403,
    "RefusedByHook": 403,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "Conflict": 409,
    "LengthRequired": 411,
    "TargetTooLong": 414,
    "MisdirectedRequest": 421,
    "HeadTooLarge": 431,
    "PreconditionFailed": 412,
    "NotMultipart": 415,
    "RangeNotSatisfiable": 416,
    "TooManyRequests": 429,
    "UnsupportedTransferCoding": 501,
    "LoopDetected": 508,
    "AccessUnavailable": 503,
    "Busy": 503,
    "Draining": 503,
    # the client's bytes
    "Malformed": 400,
    "Truncated": 400,
    "DigestMismatch": 400,
    "Stalled": 408,
    "TooLarge": 413,
    "TooManyParts": 413,
    "NoRoute": 422,
    "Rejected": 422,
    "ClientGone": 499,
    # a destination or store
    "SinkRefused": 502,
    "Incomplete": 502,
    "SinkUnavailable": 503,
    "NoDescriptors": 503,
    "SinkTimeout": 504,
    "SinkFull": 507,
    # a flow
    "FlowFailed": 500,
    "FlowStalled": 504,
    # anything else
    "InternalError": 500,
}
"""What clients rely on (docs/errors.md has when)."""

FAMILIES = {"Refused", "ClientFault", "SinkFault", "FlowFault"}

each_leaf = pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)


@each_leaf
def test_every_leaf_has_the_status_that_clients_rely_on(leaf: type[GatewayError]) -> None:
    assert leaf.status == STATUSES[leaf.__name__]


@each_leaf
def test_every_leaf_but_the_last_has_a_status_and_a_title_of_its_own(leaf: type[GatewayError]) -> None:
    assert leaf.title
    if leaf is not errors.InternalError:
        assert "status" in vars(leaf)
        assert "title" in vars(leaf)


def test_titles_and_slugs_tell_the_leaves_apart() -> None:
    assert len({leaf.title for leaf in LEAVES}) == len(LEAVES)
    assert len({leaf.slug() for leaf in LEAVES}) == len(LEAVES)


@each_leaf
def test_a_slug_is_lower_case_words_with_hyphens(leaf: type[GatewayError]) -> None:
    assert re.fullmatch("[a-z]+(-[a-z]+)*", leaf.slug())
    assert leaf.slug().replace("-", "") == leaf.__name__.lower()


def test_slugs_are_those_that_the_documentation_names() -> None:
    assert errors.Busy.slug() == "busy"
    assert errors.TooLarge.slug() == "too-large"
    assert errors.UnsupportedTransferCoding.slug() == "unsupported-transfer-coding"


def test_an_error_carries_its_detail_and_its_members() -> None:
    error = errors.SinkRefused("sink api answered 500", sink="api", sink_status=500)
    assert str(error) == error.detail == "sink api answered 500"
    assert error.members == {"sink": "api", "sink_status": 500}


def test_families_sort_errors_by_fault_and_are_no_leaves() -> None:
    for leaf in LEAVES:
        parents = {cls.__name__ for cls in leaf.__mro__}
        assert len(parents & FAMILIES) == (0 if leaf is errors.InternalError else 1)
        assert leaf.__name__ not in FAMILIES


def test_every_error_of_the_file_is_exported_and_every_leaf_is_listed() -> None:
    defined = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, GatewayError) and cls.__module__ == errors.__name__
    }
    assert {cls.__name__ for cls in defined} <= set(errors.__all__)
    assert {cls for cls in defined if not cls.__subclasses__()} == set(LEAVES)
