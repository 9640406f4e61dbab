from __future__ import annotations

import pytest

from gateway.access.units import seconds_of, size_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604800), ("1.5h", 5400)]
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("500k", 512000), ("20M", 20 << 20), ("1G", 1 << 30), ("1GiB", 1 << 30), ("2t", 2 << 40)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["0s", "0.0h", "9999999d"])
def test_a_time_is_longer_than_a_moment_and_shorter_than_for_ever(text: str) -> None:
    with pytest.raises(ValueError, match="is no time between"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1 h", "1w", "1h30m", "\u0661h", "1e3s", "inf"])
def test_what_is_no_time_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match="is no time: 90s, 30m, 1h or 7d"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1 G", "1X", "1GB B", "0x10", "\u0661"])
def test_what_is_no_size_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: 1000, 500k, 20M or 1G"):
        size_of(text)
