"""Of each target that is missed: what was tried, what that brought, and what bounds it."""

_SENDING = (
    "On SQLite a message costs 20 µs with 500 in a request, and 28 with 100, where this machine is at its fastest: two "
    "thirds are the database's (a row is written when it is claimed and when it is settled, an attempt is added, indexes "
    "follow, and the disk), the rest Python's and the request's; there is one writer at a time, and one interpreter. Tried: "
    "claims as lists of ids, and counters left alone (1.4 times); fewer columns read (1.1 times); CHECKs that compare word "
    "by word where IN made an index first (a third of each statement); six statements a batch instead of eight, and a third "
    "of the calls for each message (together 1.3 times); updates that give back how many rows they changed and not the "
    "rows, payloads that come with the first look, rows without names, attempts without a rowid (together 1.2 times with "
    "100 in a request, 1.35 with 500); one sender instead of four, half of those who wait served at a time, each by itself, "
    "rows that come back as one value, no collection of garbage, a shorter and a longer switch interval of the interpreter "
    "(nothing that stands out of the noise); a second process of workers (nothing: each waits for the other's write lock). "
    "Measured and not done: a list of ids in place of a join in both updates (0.9 µs, for one delivery at a time only), no "
    "index of what is claimed (1 µs; a rescue would read the whole table)."
)

BOUNDS: dict[str, str] = {
    "delivered_100": _SENDING,
    "delivered_500": _SENDING,
    "delivered_vs_huey": f"{_SENDING} huey deletes a task before it runs it, writes down nothing, and sends nothing.",
    "delivered_1": (
        "One message is 1.0 ms of one interpreter where this machine is at its fastest (1.7 at its slowest): half is the "
        "request, a sixth what is around it, a third its part of transactions of six statements, which four senders share on "
        "average. The bare loop writes two narrow rows. Tried: record and claim in one transaction (2.6 to 2.0 ms), six "
        "statements instead of eight (to 1.7), SQLite's patience set once and not for each transaction, no ping before a "
        "transaction on Postgres (nothing that stands out of the noise). Threads do not help an interpreter that is busy. Not "
        "done: our own reader of the answer's headers instead of the standard library's (a tenth)."
    ),
    "in_flight": (
        "A hundred messages are 5 to 6 ms of processor, so that four senders that wait 20 ms each keep the interpreter "
        "nearly busy. Tried: two transactions at once on Postgres, and a full request that wakes the next sender at once "
        "(2.6 to between 2.9 and 3.4; SQLite 2.4 to between 3.1 and 3.6), six statements a batch instead of eight (3.2 to "
        "3.3). It differs from run to run."
    ),
    "enqueue_vs_procrastinate": (
        "A hundred messages are 2.5 ms of the producer's processor (whether each is JSON and what EnOS takes, its digest, "
        "identity and size) and 2 to 3 ms of the server's, for five indexes and twelve CHECKs a row. Tried: rows as one "
        "document (3 times executemany), what is the same in all of them told once, the unique index named (10 to 25 % "
        "each), lists instead of the document and no ON CONFLICT for keys of our own (1.3 times), one look at a payload "
        "(8 % of the processor)."
    ),
    "enqueue_vs_pgqueuer": (
        "pgqueuer checks nothing, computes no digest, and has fewer columns and indexes. What a hundred of ours cost is "
        "told at enqueue_vs_procrastinate."
    ),
    "upload_vs_toolbelt": (
        "The digest is checked while sending, on a thread beside the send: SHA-256 does 1.35 GB/s on a processor of this "
        "machine, so that 100 MB cannot take less than 74 ms, four times the toolbelt's speed in its good moments; and the "
        "sender, that thread and the receiver want three processors, of which there are two. Without that look, which the "
        "toolbelt does not take either, it is as the unchecked figure says. Tried: the digest on a thread of its own (0.54 "
        "to 0.9 of curl), blocks of 1 MiB (a sixth less processor, 1.1 to 1.2 times); sendfile with the digest's thread "
        "reading for itself, memory used again, larger socket buffers, TCP_CORK (nothing)."
    ),
}
