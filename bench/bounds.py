"""Of each target that is missed: what was tried, what that brought, and what bounds it."""

_SENDING = (
    "On SQLite a message of a full request costs about 50 µs of processor: half is the database's (a row is written "
    "when it is claimed and when it is settled, an attempt is added; a third of that are CHECKs), the rest Python's; "
    "and there is one writer at a time. Tried: claims as lists of ids, and counters left alone (1.4 times); fewer "
    "columns read (1.1 times); a shorter and a longer switch interval of the interpreter (nothing, or worse). Not "
    "tried: simpler CHECKs, for which the tables have to be made anew; a second process."
)

BOUNDS: dict[str, str] = {
    "delivered_100": _SENDING,
    "delivered_500": _SENDING,
    "delivered_vs_huey": f"{_SENDING} huey deletes a task before it runs it, writes down nothing, and sends nothing.",
    "delivered_1": (
        "One message is 2 ms of one interpreter: 0.8 ms the request (requests alone takes as much), the rest its part of "
        "transactions of eight statements, of each of which SQLAlchemy takes 0.1 ms, and which four senders share on "
        "average. The bare loop writes two narrow rows. Tried: record and claim in one transaction (2.6 to 2.0 ms). "
        "Threads do not help an interpreter that is busy."
    ),
    "in_flight": (
        "A hundred messages are 6 to 7 ms of processor, so that four senders that wait 20 ms each keep the interpreter "
        "just busy. Tried: two transactions at once on Postgres, and a full request that wakes the next sender at once "
        "(2.6 to between 2.9 and 3.4; SQLite 2.4 to between 3.1 and 3.6). It differs from run to run."
    ),
    "enqueue_vs_procrastinate": (
        "A hundred messages are 3.2 ms of the producer's processor (a third looks whether each is JSON and what EnOS "
        "takes, and computes its digest; identities, sizes and the document are the rest) and 3 to 4 ms of the server's, "
        "for five indexes and twelve CHECKs a row. Tried: rows as one document (3 times executemany), what is the same in "
        "all of them told once, the unique index named (10 to 25 % each)."
    ),
    "enqueue_vs_pgqueuer": (
        "pgqueuer checks nothing, computes no digest, and has fewer columns and indexes. What a hundred of ours cost is "
        "told at enqueue_vs_procrastinate."
    ),
    "upload_vs_toolbelt": (
        "The digest is checked while sending, at 1.3 GB/s on a thread beside the send; the sender, that thread and the "
        "receiver want three processors, and here are two. Without that look, which the toolbelt does not take either, it "
        "is as the unchecked figure says. Tried: the digest on a thread of its own (0.54 to 0.9 of curl)."
    ),
    "idle_cpu_sqlite": (
        "A look at the file every 65 ms wakes a thread, which takes 0.1 to 0.2 ms on this machine whatever it does then. "
        "Tried: inotify (0.2 %, but it needs ctypes, which this project does without), 40 ms (0.66 %)."
    ),
}
