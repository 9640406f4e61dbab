"""What is said of an upload's sinks when it has ended."""

from __future__ import annotations

from gateway.upload.timeline import Timeline


def test_each_sink_has_what_became_of_it_and_what_it_was_given() -> None:
    timeline = Timeline()
    kept, failed, _undone, dropped = (timeline.opening(name) for name in ("disk", "api", "other", "mirror"))
    timeline.arrive()
    for sink in (kept, failed):
        sink.begin_commit()
    kept.end_commit()
    dropped.give_up()
    timeline.end(
        "incomplete", received_bytes=9, given=[("disk", 3), ("api", 2)], failed="api", dropped={"mirror": "lag"}
    )
    assert [(sink.sink, sink.outcome, sink.given_bytes) for sink in timeline.sinks] == [
        ("disk", "kept", 3),
        ("api", "failed", 2),
        ("other", "undone", 0),
        ("mirror", "dropped", 0),
    ]
    assert (timeline.outcome, timeline.received_bytes) == ("incomplete", 9)
    assert 0 < timeline.began <= timeline.arrived <= kept.commit_ended <= timeline.ended


def test_a_sink_ends_with_its_commit_or_when_it_is_given_up_or_with_the_upload() -> None:
    timeline = Timeline()
    kept, dropped, undone = (timeline.opening(name) for name in ("disk", "mirror", "api"))
    kept.begin_commit()
    kept.end_commit()
    dropped.give_up()
    assert kept.ended(5.0) == kept.commit_ended >= kept.commit_began > 0
    assert dropped.ended(5.0) == dropped.given_up > 0
    assert undone.ended(5.0) == 5.0
