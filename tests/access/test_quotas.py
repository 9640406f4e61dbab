from __future__ import annotations

from typing import Any

import pytest

from gateway.access.asked import ANYBODY, Identity
from gateway.access.counts import MemoryCounts
from gateway.access.quotas import Holders, Meter, Quotas, neighbourhood
from gateway.errors import SinkUnavailable, TooManyRequests

CI, OTHER = Identity("key:ci", "keys"), Identity("key:other", "keys")


def quotas(**limits: Any) -> Quotas:
    return Quotas(counts=MemoryCounts(), holders=Holders(), **limits)


def metered(those: Quotas) -> Meter:
    meter = those.meter(CI, is_stored=True)
    assert meter is not None
    return meter


class TestUploads:
    def test_an_address_has_a_share_and_gets_it_back(self) -> None:
        those = quotas(uploads_per_address=2)
        with those.share(ANYBODY, "192.0.2.1"), those.share(ANYBODY, "192.0.2.1"):
            with pytest.raises(TooManyRequests) as refused:
                those.share(ANYBODY, "192.0.2.1")
            assert refused.value.members == {"limit": 2, "retry_after": 2, "quota": "uploads"}
            with those.share(ANYBODY, "192.0.2.2"):
                pass
        with those.share(ANYBODY, "192.0.2.1"), those.share(ANYBODY, "192.0.2.1"):
            pass

    def test_an_identity_has_its_own_wherever_it_is(self) -> None:
        those = quotas(uploads_per_address=1, uploads=2)
        with those.share(CI, "192.0.2.1"), those.share(CI, "192.0.2.2"):
            with pytest.raises(TooManyRequests):
                those.share(CI, "192.0.2.3")
            with those.share(OTHER, "192.0.2.1"), those.share(ANYBODY, "192.0.2.1"):
                pass

    def test_nothing_is_counted_where_there_is_no_limit(self) -> None:
        holders = Holders()
        those = Quotas(counts=MemoryCounts(), holders=holders)
        with those.share(CI, "192.0.2.1"), those.share(ANYBODY, "192.0.2.1"):
            assert not holders._held

    def test_who_holds_nothing_is_forgotten(self) -> None:
        holders = Holders()
        those = Quotas(counts=MemoryCounts(), holders=holders, uploads_per_address=5)
        for number in range(100):
            with those.share(ANYBODY, f"192.0.2.{number}"):
                pass
        assert not holders._held


class TestRequests:
    async def test_so_many_in_a_minute_of_each_identity(self) -> None:
        those = quotas(requests_per_minute=3)
        for _ in range(3):
            await those.count_request(CI)
        with pytest.raises(TooManyRequests) as refused:
            await those.count_request(CI)
        members = refused.value.members
        assert (members["limit"], members["quota"], members["window_seconds"]) == (3, "requests", 60)
        retry_after = members["retry_after"]
        assert isinstance(retry_after, int)
        assert 1 <= retry_after <= 61
        await those.count_request(OTHER)
        for _ in range(10):
            await those.count_request(ANYBODY)


class TestBytes:
    async def test_what_is_declared_is_counted_before_it_comes(self) -> None:
        those = quotas(bytes_per_day=100)
        meter = metered(those)
        await meter.expect(90)
        with pytest.raises(TooManyRequests):
            await metered(those).expect(20)
        await meter.end(50)  # it was broken off
        await metered(those).expect(50)
        with pytest.raises(TooManyRequests):
            await metered(those).expect(1)

    async def test_what_is_not_declared_is_counted_as_it_comes(self) -> None:
        those = quotas(bytes_per_day=5 << 20)
        meter = metered(those)
        for size in range(0, 4 << 20, 100_000):
            await meter.came(size)
        with pytest.raises(TooManyRequests):
            await meter.came(5 << 20)
        await meter.end(4_100_000)
        await metered(those).expect((5 << 20) - 4_100_000)

    async def test_what_is_kept_counts_beside_what_is_in_progress(self) -> None:
        kept = 60

        async def stored(owner: str) -> int:
            assert owner == "key:ci"
            return kept

        those = Quotas(counts=MemoryCounts(), holders=Holders(), stored=stored, stored_bytes=100)
        first = metered(those)
        await first.expect(30)
        with pytest.raises(TooManyRequests) as refused:
            await metered(those).expect(11)
        assert refused.value.members["limit"] == 100
        await metered(those).expect(10)
        kept = 90
        await first.end(30)
        with pytest.raises(TooManyRequests):
            await metered(those).expect(1)
        kept = 0
        await metered(those).expect(90)

    async def test_a_store_that_does_not_answer_leaves_nothing_counted(self) -> None:
        answers = True

        async def stored(owner: str) -> int:
            if not answers:
                raise SinkUnavailable("it hangs", sink="disk")
            return 0

        those = Quotas(counts=MemoryCounts(), holders=Holders(), stored=stored, stored_bytes=100)
        answers = False
        for _ in range(3):
            with pytest.raises(SinkUnavailable):
                await metered(those).expect(60)
        answers = True
        await metered(those).expect(100)

    async def test_what_one_quota_refuses_counts_for_none(self) -> None:
        those = quotas(bytes_per_day=100, stored_bytes=50)
        meter = metered(those)
        with pytest.raises(TooManyRequests):
            await meter.expect(60)
        await meter.end(0)
        for _ in range(2):
            meter = metered(those)
            await meter.expect(50)
            await meter.end(50)

    def test_there_is_no_meter_where_nothing_is_counted(self) -> None:
        assert quotas().meter(CI, is_stored=True) is None
        assert quotas(bytes_per_day=1, stored_bytes=1).meter(ANYBODY, is_stored=True) is None
        assert quotas(stored_bytes=1).meter(CI, is_stored=False) is None


@pytest.mark.parametrize(
    ("address", "one"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_what_counts_as_one_address(address: str, one: str) -> None:
    assert neighbourhood(address) == one
