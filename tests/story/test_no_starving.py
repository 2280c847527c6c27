"""A message that was refused with others is not overtaken for ever by those of good repute."""

import pytest

from outbox import State
from tests.factories import states
from tests.story.conftest import Place


@pytest.mark.long
@pytest.mark.parametrize("ordered", [True, False], ids=["stream", "share"])
def test_a_message_that_travels_alone_is_not_passed_over_while_others_arrive(place: Place, ordered: bool) -> None:
    outbox_ = place.outbox(clock=place.clock)
    hand = place.hand(outbox_)
    place.enqueue(outbox_, "bad")
    place.enqueue(outbox_, "innocent", ordering_key="pump", ordered=ordered)
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad")
    hand.turn()

    for number in range(8):
        place.clock.move(seconds=1)
        place.enqueue(outbox_, f"fresh-{number}")
        hand.turn()

    assert State.DELIVERED == states(place.database)["innocent"]
