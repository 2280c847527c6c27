"""What time it is when the wall clock may be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.ambient import Ambient
from outbox.timekeeping import Timekeeper, When, plausible
from tests.pure.making import NOW, seconds

DAY = 86_400.0
YEAR_1970 = datetime(1970, 1, 1, 0, 5, tzinfo=UTC)


@dataclass
class Clocks:
    """A wall clock and a monotonic one, and who watches them."""

    wall: datetime = NOW
    ticks: float = 50.0
    keeper: Timekeeper = field(init=False)

    def __post_init__(self) -> None:
        self.keeper = Timekeeper(Ambient(now=lambda: self.wall, monotonic=lambda: self.ticks))

    def read(self, passed: float = 0.0, step: float = 0.0) -> When:
        """The time after both clocks have gone on, and the wall clock has been set by `step` more."""
        self.ticks += passed
        self.wall += seconds(passed + step)
        return self.keeper.read()


@pytest.mark.parametrize(
    ("now", "expected"),
    [(YEAR_1970, False), (datetime(2023, 12, 31, tzinfo=UTC), False), (datetime(2024, 1, 1, tzinfo=UTC), True), (NOW, True)],
)
def test_a_clock_before_the_floor_was_never_set(now: datetime, expected: bool) -> None:
    assert expected == plausible(now)


@pytest.mark.parametrize(
    ("away", "chosen", "invented"),
    [(0, True, True), (1, False, True), (5, False, True), (6, False, False), (60, False, False), (61, False, True)],
)
def test_an_instant_has_come_by_who_said_it(away: float, chosen: bool, invented: bool) -> None:
    when = When(NOW + seconds(5), chosen=NOW, invented=NOW + seconds(5), beyond=NOW + seconds(60))

    come = [when.has_come(NOW + seconds(away), chosen=each) for each in (True, False)]

    assert [chosen, invented] == come


def test_with_a_clock_that_goes_right_there_is_one_time() -> None:
    clocks = Clocks()

    times = [clocks.read(passed) for passed in (0.0, 0.5, 3600.0, 30 * DAY)]

    assert [When.certain(each.now) for each in times] == times
    assert NOW + seconds(3600.5 + 30 * DAY) == times[-1].now


def test_after_a_step_back_chosen_instants_wait_and_invented_ones_do_not() -> None:
    clocks = Clocks()

    when = clocks.read(10, step=-DAY)

    assert When(NOW + seconds(10 - DAY), chosen=NOW + seconds(10 - DAY), invented=NOW + seconds(10)) == when


def test_after_a_jump_ahead_chosen_instants_wait_and_invented_ones_do_not() -> None:
    clocks = Clocks()

    when = clocks.read(10, step=365 * DAY)

    assert When(NOW + seconds(10 + 365 * DAY), chosen=NOW + seconds(10), invented=NOW + seconds(10 + 365 * DAY)) == when


def test_both_times_go_on_while_it_is_in_dispute_which_is_right() -> None:
    clocks = Clocks()
    first = clocks.read(10, step=DAY)

    later = clocks.read(600)

    assert [first.chosen + seconds(600), first.invented + seconds(600)] == [later.chosen, later.invented]
    assert later.now == later.invented


def test_a_clock_that_was_never_set_is_believed_at_once_when_it_is_set() -> None:
    clocks = Clocks(wall=YEAR_1970)

    clocks.wall = NOW

    assert When.certain(NOW) == clocks.keeper.read()
    assert When.certain(NOW + seconds(5)) == clocks.read(5)


def test_a_clock_that_falls_back_to_1970_is_not_believed_and_is_when_it_is_set_again() -> None:
    clocks = Clocks()
    clocks.wall = YEAR_1970

    fallen = clocks.read(10)
    clocks.wall = NOW + seconds(20)
    set_again = clocks.read()

    assert not plausible(fallen.chosen)
    assert NOW + seconds(10) == fallen.invented
    assert When.certain(NOW + seconds(20)) == set_again


@pytest.mark.parametrize("step", [-DAY, DAY, -120.0, 120.0])
def test_a_clock_that_goes_on_steadily_after_its_step_is_believed_after_an_hour(step: float) -> None:
    clocks = Clocks()
    clocks.read(1, step=step)

    last_in_dispute, believed, later = clocks.read(3599), clocks.read(1), clocks.read(1)

    assert last_in_dispute.chosen < last_in_dispute.invented
    assert [When.certain(NOW + seconds(3601 + step)), When.certain(NOW + seconds(3602 + step))] == [believed, later]


def test_a_clock_that_steps_again_has_to_prove_itself_from_then_on() -> None:
    clocks = Clocks()
    clocks.read(0, step=DAY)
    clocks.read(3000, step=DAY)

    still, believed = clocks.read(3599), clocks.read(1)

    assert still.chosen < still.invented
    assert When.certain(believed.now) == believed


def test_a_clock_that_is_set_right_again_within_the_hour_is_believed_at_once() -> None:
    clocks = Clocks()
    clocks.read(10, step=-DAY)

    assert When.certain(NOW + seconds(20)) == clocks.read(10, step=DAY)


def test_a_dispute_that_ended_counts_nothing_towards_the_next() -> None:
    clocks = Clocks()
    clocks.read(0, step=DAY)
    clocks.read(3000, step=-DAY)

    clocks.read(0, step=DAY)
    soon = clocks.read(1000)

    assert soon.chosen < soon.invented


@pytest.mark.parametrize("drift", [0.001, -0.001, 5.0, -5.0])
def test_a_clock_that_drifts_slowly_is_followed_however_far_it_goes(drift: float) -> None:
    clocks = Clocks()

    times = [clocks.read(10, step=drift) for _ in range(1000)]

    assert all(each == When.certain(each.now) for each in times)
    assert NOW + seconds(10_000 + 1000 * drift) == times[-1].now


@pytest.mark.parametrize(("step", "certain"), [(60.0, True), (-60.0, True), (60.001, False), (-60.001, False)])
def test_up_to_a_minute_is_no_step(step: float, certain: bool) -> None:
    when = Clocks().read(1, step=step)

    assert certain == (when.chosen == when.invented)


@given(
    start=st.sampled_from([NOW, YEAR_1970]),
    looks=st.lists(
        st.tuples(
            st.floats(0, 7200, allow_nan=False),
            st.just(0.0) | st.floats(-100, 100) | st.floats(-3e7, 3e7) | st.sampled_from([-DAY, DAY, -365 * DAY]),
        ),
        max_size=30,
    ),
)
def test_whatever_the_clock_does_what_was_chosen_comes_no_sooner_than_what_was_invented(
    start: datetime, looks: list[tuple[float, float]]
) -> None:
    clocks = Clocks(wall=start + timedelta(days=4000))
    for passed, step in looks:
        when = clocks.read(passed, step)

        assert when.chosen <= when.now <= when.invented
        assert clocks.wall == when.now
    # Whatever it did: an hour of steady going after the last look that saw a step, and it is believed.
    clocks.read()
    assert When.certain(clocks.wall + seconds(3600.001)) == clocks.read(3600.001)
