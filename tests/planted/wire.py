"""Faults in what is sent, in how an answer is heard and read, and in what is let in at the door."""

from tests.planted.planting import Edit, Fault

ENOS, TRANSPORT, FUSES = "outbox.destinations.enos", "outbox.transport", "outbox.fuses"

FAULTS = (
    Fault(
        "P10",
        "any 2xx counts as delivered",
        (
            Edit(
                ENOS,
                """\
        rule = first(self.verdicts, reading)
""",
                """\
        if 200 <= answer.status < 300:
            return verdict_of(Meaning.DELIVERED, facts, answer, now)
        rule = first(self.verdicts, reading)
""",
            ),
        ),
        ("tests/pure/test_enos_judge.py::test_what_is_not_the_success_envelope_is_the_destinations_fault",),
    ),
    Fault(
        "P11",
        "redirects are followed",
        (
            Edit(TRANSPORT, "redirect=False", "redirect=True"),
            Edit(TRANSPORT, "Retry(0, read=False)", "Retry(3, read=False)"),
        ),
        ("tests/conformance/test_transport.py::test_a_redirect_is_an_answer_and_never_followed[the same host-303]",),
    ),
    Fault(
        "P12",
        "a send has a read timeout and no deadline",
        (
            Edit(FUSES, "fuse.blow(fuse.too_late)", "pass"),
            Edit(FUSES, "if self.reason is None and time.monotonic() >= self.ends:", "if self._seconds <= 0:"),
        ),
        (
            "tests/conformance/test_transport.py::test_a_receiver_that_dawdles_ends_with_no_answer_in_time[Drip(seconds_per_byte=0.05)]",
        ),
    ),
    Fault(
        "P13",
        "an answer that breaks off counts as heard to its end",
        (
            Edit(
                TRANSPORT,
                """\
            if not 400 <= response.status < 600:
                raise
            return bytes(gathered), False
""",
                """\
            return bytes(gathered), True
""",
            ),
        ),
        ("tests/conformance/test_transport.py::test_what_is_no_whole_answer_is_no_answer[half the body]",),
    ),
    Fault(
        "P19",
        "a file is sent to its end, whatever length was declared",
        (
            Edit(
                "outbox.multipart",
                """\
        while left:
            block = source.read(min(most, left))
            if not block:
                raise FileChanged(file.name, f"{left} of its {file.size} bytes are missing")
""",
                """\
        while block := source.read(most):
""",
            ),
        ),
        ("tests/pure/test_multipart.py::test_a_file_that_grew_puts_no_byte_more_on_the_wire",),
    ),
    Fault(
        "P20",
        "an upload that our own stop has cut is charged",
        (
            Edit(
                "outbox.dispatcher",
                """\
        if isinstance(verdict, NotSent) and self._stopping():
            verdict = replace(verdict, charged=False)
""",
                "",
            ),
        ),
        ("tests/story/test_shutdown.py::test_an_upload_that_outlasts_the_grace_is_cut_and_costs_nothing[sqlite-15]",),
    ),
    Fault(
        "guilt-by-status",
        "a status alone accuses a message, with or without the envelope",
        (
            Edit(
                ENOS,
                """\
        rule = first(self.verdicts, reading)
""",
                """\
        if answer.status in (400, 404, 409, 415, 422):
            return verdict_of(Meaning.REJECT, facts, answer, now)
        rule = first(self.verdicts, reading)
""",
            ),
        ),
        ("tests/pure/test_enos_judge.py::test_a_status_without_the_envelope_accuses_no_message[404]",),
    ),
    Fault(
        "key-of-none",
        "a key that was made from a None is let in",
        (Edit("outbox.intake", "    if _NONE.search(key):\n", "    if _NONE is None:\n"),),
        ("tests/story/test_door.py::test_a_key_that_is_none_is_refused[sqlite-key]",),
    ),
    Fault(
        "clamped-due-at",
        "a producer's due_at is taken for one of our own, and so never far away",
        (Edit("outbox.entering", "        request.due_at is not None,\n", "        False,\n"),),
        ("tests/story/test_clocks.py::test_a_boot_in_1970_finds_a_backlog_of_before[sqlite]",),
    ),
)
