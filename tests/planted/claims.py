"""Faults in who may send what, and in what is written of it: claims, fences, records, beats and probes."""

from tests.planted.planting import Edit, Fault

CLAIMS, CLAIMING, DISPATCHER = "outbox.claims", "outbox.store.claiming", "outbox.dispatcher"
LIVING, PRESENCE = "outbox.store.living", "outbox.presence"
EXPLORER = "tests/explore/test_explorer.py::test_no_order_"
OF_TWO_WORKERS = f"{EXPLORER}of_two_workers_and_one_message_breaks_a_law"
WITH_AN_OPERATOR = f"{EXPLORER}with_an_operator_breaks_a_law"
WITH_A_DATABASE_AWAY = f"{EXPLORER}with_a_database_that_goes_away_breaks_a_law"
OF_A_STREAM = f"{EXPLORER}of_two_messages_of_a_stream_breaks_a_law"

FAULTS = (
    Fault(
        "P07",
        "a claim takes what it has read: no write lock, no row lock, no second look",
        (
            Edit("outbox.database", '_begin_with(engine, "BEGIN IMMEDIATE")', '_begin_with(engine, "BEGIN")'),
            Edit(
                CLAIMING,
                """\
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
    )
""",
                """\
        .limit(bindparam("limit", type_=Integer))
    )
""",
            ),
            Edit(
                CLAIMING,
                """.where(message.c.id == taken.id, message.c.state.concat("") == literal_column("'pending'"))""",
                ".where(message.c.id == taken.id)",
            ),
        ),
        (
            "tests/conformance/test_store_claiming.py::test_a_claim_passes_over_what_another_is_claiming",
            "tests/story/test_contention.py::test_workers_in_one_process_do_not_get_in_each_others_way[sqlite]",
        ),
    ),
    Fault(
        "P08",
        "a record does not ask whether the claim still holds",
        (
            Edit(
                "outbox.store.recording",
                """\
            # Not as they are: a planner would take the index of what is claimed, which is small, but for what was in it once.
            message.c.state.concat("") == literal_column("'claimed'"),
            message.c.claimed_by.concat("") == parameter(message.c.claimed_by, "worker"),
            message.c.delivery_id == claims.delivery_id,
""",
                "",
            ),
        ),
        (
            OF_TWO_WORKERS,
            "tests/conformance/test_store_recording.py::test_a_record_for_somebody_elses_claim_writes_nothing[sqlite]",
        ),
    ),
    Fault(
        "P09",
        "a claim does not ask whether a message of the same stream goes first",
        (Edit(CLAIMING, "message.c.lane == lane, pending, loose)", "message.c.lane == lane, pending)"),),
        (
            "tests/explore/test_machine.py::test_no_life_goes_wrong",
            OF_A_STREAM,
            "tests/conformance/test_store_claiming.py::test_of_a_stream_only_the_head_is_claimed[sqlite]",
        ),
    ),
    Fault(
        "P14",
        "a worker looks for new messages only behind the last id that it has claimed",
        (
            Edit(
                CLAIMS,
                "        self._lead = itertools.count()\n",
                "        self._lead = itertools.count()\n        self._last: dict[tuple[str, Lane], int] = {}\n",
            ),
            Edit(
                CLAIMS,
                """\
        waiting = self._without_expired(connection, policy, waiting, when)
""",
                """\
        waiting = [each for each in waiting if each.attempt or each.id > self._last.get((name, lane), 0)]
        waiting = self._without_expired(connection, policy, waiting, when)
""",
            ),
            Edit(
                CLAIMS,
                """\
        begun = deliveries.end_and_start(connection, name, worker, ended, real, when.now)
""",
                """\
        for start in real:
            last = self._last.get((name, start.lane), 0)
            self._last[name, start.lane] = max(last, *(each.id for each in start.taken))
        begun = deliveries.end_and_start(connection, name, worker, ended, real, when.now)
""",
            ),
        ),
        (
            "tests/story/test_long_transactions.py::test_messages_that_are_committed_late_are_delivered_although_many_after_them_went_before",
        ),
    ),
    Fault(
        "P17",
        "who is gone is told by comparing wall clocks",
        (
            Edit(
                LIVING,
                "def declare_gone(",
                """\
def beaten_at(connection: Connection) -> dict[str, datetime]:
    rows = connection.execute(select(worker.c.id, worker.c.beat_at).where(worker.c.gone.is_(False)))
    return {row.id: row.beat_at for row in rows}


def declare_gone(""",
            ),
            Edit(
                PRESENCE,
                """\
            beats = living.beats(connection)
""",
                """\
            beats = living.beats(connection)
            beaten_at = living.beaten_at(connection)
""",
            ),
            Edit(
                PRESENCE,
                """\
        gone = [identity for identity, seen in self._others.items() if seen.still_for >= self._gone_after]
""",
                """\
        wall = self._ambient.now()
        gone = [each for each in self._others if (wall - beaten_at[each]).total_seconds() >= self._gone_after]
""",
            ),
        ),
        ("tests/conformance/test_store_living.py::test_the_wall_clock_has_no_say_in_who_is_gone[sqlite]",),
    ),
    Fault(
        "P18",
        "a claim is committed only after its upload",
        (
            Edit(
                DISPATCHER,
                """\
        batch = self._claiming_for[name].ask(lanes)
        if batch is None:
            return False
        verdict, trace_id = self._deliver(batch, began)
""",
                """\
        with self._claim_under_way() as hold, self._database.begin() as connection:
            batch = self._claims.claim(connection, name, lanes)
            if batch is None:
                return False
            hold.append(batch.delivery)
            verdict, trace_id = self._deliver(batch, began)
""",
            ),
            Edit(
                DISPATCHER,
                """\
        batch = self._claiming_for[name].ask(mine)
        while batch is not None:
            verdict, trace_id = self._deliver(batch, began)
            result = _result(batch, verdict, trace_id)
            began = self._ambient.monotonic()
            if not _moves(verdict) or began >= ends:
""",
                """\
        while True:
            with self._claim_under_way() as hold, self._database.begin() as connection:
                batch = self._claims.claim(connection, name, mine)
                if batch is None:
                    break
                hold.append(batch.delivery)
                verdict, trace_id = self._deliver(batch, began)
            result = _result(batch, verdict, trace_id)
            began = self._ambient.monotonic()
            if True:
""",
            ),
        ),
        (
            "tests/story/test_crash_points.py::test_a_process_that_is_killed_at_any_point_is_made_good[sqlite-lose an answer]",
            OF_TWO_WORKERS,
        ),
    ),
    Fault(
        "stranded-claim",
        "an outcome that could not be recorded is not kept, so that its claim stays for ever",
        (
            Edit(
                DISPATCHER,
                """\
            with self._lock:
                self._unrecorded.append(result)
            raise
""",
                """\
            raise
""",
            ),
        ),
        (
            WITH_A_DATABASE_AWAY,
            "tests/story/test_unrecorded.py::test_an_outcome_that_was_not_recorded_is_recorded_before_anything_else_is_sent[sqlite]",
        ),
    ),
    Fault(
        "lost-neighbours",
        "when one of several outcomes cannot be recorded, those behind it are forgotten",
        (
            Edit(
                DISPATCHER,
                """\
            except Exception as error:  # noqa: BLE001 (raised below)
                errors.append(error)
            except BaseException:
                with self._lock:
                    self._unrecorded += leftovers
                raise
""",
                """\
            except BaseException:
                raise
""",
            ),
        ),
        (
            "tests/story/test_unrecorded.py::test_of_several_outcomes_that_wait_one_that_cannot_be_recorded_holds_up_no_other[sqlite]",
        ),
    ),
    Fault(
        "dead-probe",
        "the probe of a worker that died is never taken back, so that nobody may probe any more",
        (
            Edit(
                LIVING,
                "    left = (delivery.c.finished_at.is_(None), delivery.c.worker.not_in(alive),",
                "    left = (delivery.c.probe.is_(False), delivery.c.finished_at.is_(None), delivery.c.worker.not_in(alive),",
            ),
        ),
        (
            "tests/story/test_probes.py::test_a_prober_that_died_holds_nobody_up_once_it_is_rescued_however_late_that_is[sqlite]",
        ),
    ),
    Fault(
        "unmoved-door",
        "a probe does not move open_until",
        (
            Edit(
                CLAIMS,
                "opened = after_probe_began(seen.breaker, when.invented, self._destinations[name].policy)",
                "opened = seen.breaker",
            ),
        ),
        (
            "tests/story/test_probes.py::test_a_probe_moves_open_until_forward_as_it_begins[sqlite]",
            "tests/story/test_probes.py::test_of_two_who_run_for_the_probe_at_the_same_moment_one_gets_it",
        ),
    ),
    Fault(
        "unseen-door",
        "open_until is ignored in the race for the probe",
        (Edit("outbox.store.breaker", "        destination.c.open_until.is_not_distinct_from(seen.open_until),\n", ""),),
        ("tests/story/test_probes.py::test_of_two_who_run_for_the_probe_at_the_same_moment_one_gets_it",),
    ),
    Fault(
        "gone-unasked",
        "a worker is declared gone although it has beaten since it was looked at",
        (
            Edit(
                LIVING,
                "    still = (worker.c.id == worker_id, worker.c.beat == seen, worker.c.gone.is_(False))",
                "    still = (worker.c.id == worker_id, worker.c.gone.is_(False))",
            ),
        ),
        (
            OF_TWO_WORKERS,
            "tests/conformance/test_store_living.py::test_who_has_beaten_since_is_not_declared_gone[sqlite]",
        ),
    ),
    Fault(
        "replayed-while-claimed",
        "a message that is being sent can be replayed",
        (Edit("outbox.store.acting", '    "replay": FINAL,\n', '    "replay": FINAL | {State.CLAIMED},\n'),),
        (
            WITH_AN_OPERATOR,
            "tests/conformance/test_store_acting.py::test_an_act_is_for_certain_states[sqlite-replay-states0]",
        ),
    ),
)
