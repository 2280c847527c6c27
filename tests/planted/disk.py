"""Faults in what makes a commit and its files survive: settings of the database, the spool, and the sweep of it."""

from tests.planted.planting import Edit, Fault

DATABASE, SPOOL = "outbox.database", "outbox.spool.directory"
APP, PRODUCING = "outbox.app", "outbox.producing"
REPLAY = "tests/story/test_power_cut.py::test_nothing_is_lost_in_whatever_a_power_cut_may_leave"
REPLAY_WITHOUT_WAL = "tests/story/test_power_cut.py::test_nothing_is_lost_at_any_point_of_a_recording[truncate and full]"
REFUSED = "tests/story/test_power_cut.py::test_a_caller_whose_setting_would_lose_a_commit_is_refused_every_time"
KILLED = "tests/story/test_crash_points.py::test_a_process_that_is_killed_at_any_point_is_made_good"
SYNCED = "tests/conformance/test_spool.py::test_the_bytes_are_synced_before_the_name_and_the_name_before_it_returns"
FAILED_SYNC = (
    "tests/story/test_sync_failures.py::test_an_enqueue_whose_files_cannot_be_synced_leaves_nothing_and_the_next_one_is_taken"
)
ONCE = "tests/conformance/test_spool.py::test_whatever_fails_nothing_is_left_under_the_name_and_nothing_is_tried_twice"

FAULTS = (
    Fault(
        "P01",
        "SQLite runs with synchronous=NORMAL",
        (Edit(DATABASE, "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"),),
        (REPLAY,),
    ),
    Fault(
        "P02",
        "a rollback journal that is deleted counts as safe in a power cut",
        (Edit(DATABASE, 'journal in ("wal", "truncate")', 'journal in ("wal", "truncate", "delete")'),),
        (
            REPLAY,
            REFUSED,
        ),
    ),
    Fault(
        "P03",
        "Postgres with synchronous_commit=off counts as safe",
        (
            Edit(
                DATABASE,
                'for name in ("fsync", "full_page_writes", "synchronous_commit") if',
                'for name in ("fsync", "full_page_writes") if',
            ),
        ),
        (
            "tests/story/test_postgres_away.py::test_whoever_does_not_wait_for_the_disk_loses_what_was_committed_and_strict_durability_refuses_that",
        ),
    ),
    Fault(
        "P04",
        "a spooled file is not fsynced",
        (
            Edit(
                SPOOL,
                """\
                    os.fsync(target.fileno())
                self._make_durable(final.parent)
""",
                """\
                self._make_durable(final.parent)
""",
            ),
        ),
        (
            REPLAY,
            SYNCED,
        ),
    ),
    Fault(
        "P05",
        "the folder of a spooled file is not fsynced",
        (Edit(SPOOL, "                _sync_folder(final.parent)\n", ""),),
        (
            REPLAY,
            SYNCED,
        ),
    ),
    Fault(
        "P06",
        "a file gets its name in the spool only after its row is committed",
        (
            Edit(
                SPOOL,
                """\
                ours = unfinished.rename(final)
                _sync_folder(final.parent)
""",
                """\
                self.unnamed = [*getattr(self, "unnamed", []), (unfinished, final)]
""",
            ),
            Edit(
                SPOOL,
                """\
    def open(self, name: str) -> BinaryIO:
""",
                """\
    def name_files(self) -> None:
        while getattr(self, "unnamed", []):
            unfinished, final = self.unnamed.pop()
            unfinished.rename(final)
            _sync_folder(final.parent)

    def open(self, name: str) -> BinaryIO:
""",
            ),
            Edit(
                PRODUCING,
                """\
            entered = entering.enter(connection, arrivals, ready.when.now, self.ambient.new_id, nudge=by_itself)
""",
                """\
            import sqlalchemy
            entered = entering.enter(connection, arrivals, ready.when.now, self.ambient.new_id, nudge=by_itself)
            sqlalchemy.event.listen(connection.engine.pool, "checkin", lambda *_: self.spool_store.name_files(), once=True)
""",
            ),
            Edit(
                PRODUCING,
                """\
        return spooled

    async def aspool(""",
                """\
        self.spool_store.name_files()
        return spooled

    async def aspool(""",
            ),
        ),
        (
            REPLAY_WITHOUT_WAL,
            f"{KILLED}[sqlite-enqueue a file]",
        ),
    ),
    Fault(
        "P15",
        "a sweep deletes at once what no committed row refers to",
        (
            Edit(APP, "if entry.modified_at <= now - grace)\n", ")\n"),
            Edit(APP, "            self.spool_store.park(name)\n", "            self.spool_store.delete(name)\n"),
        ),
        ("tests/story/test_enqueue.py::test_a_transaction_that_outlasts_the_grace_gets_its_file_back[sqlite]",),
    ),
    Fault(
        "swept-while-open",
        "a file that was swept while its transaction was open is not taken back",
        (Edit(SPOOL, "        if not path.exists() and parked.exists():\n", "        if path == parked:\n"),),
        ("tests/story/test_enqueue.py::test_a_transaction_that_outlasts_the_grace_gets_its_file_back[sqlite]",),
    ),
    Fault(
        "P16",
        "an fsync that failed is tried once more on the same file",
        (
            Edit(
                SPOOL,
                """\
                    os.fsync(target.fileno())
                self._make_durable(final.parent)
""",
                """\
                    try:
                        os.fsync(target.fileno())
                    except OSError:
                        os.fsync(target.fileno())
                self._make_durable(final.parent)
""",
            ),
        ),
        (
            f"{FAILED_SYNC}[sqlite-once]",
            f"{ONCE}[sync of the file-[Errno 5] Input/output error]",
        ),
    ),
)
