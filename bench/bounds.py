"""Of each target that is missed: what was tried, what that brought, and what bounds it."""

_SENDING = (
    "On SQLite a message of a full request costs about 50 µs of processor: half is the database's (the row is written when it is"
    " claimed and when it is settled, an attempt is added; a third of that are CHECKs), the rest Python's, and one writer after"
    " the other. Tried: record and claim in one transaction, threads that share one (1.3 times); claims as lists of ids, counters"
    " left alone (1.4 times); fewer columns read (1.1 times); a shorter and a longer switch interval, yielding before a"
    " transaction (nothing, or worse). Not tried: simpler CHECKs, which need the tables to be made anew; a second process."
)

BOUNDS: dict[str, str] = {
    "delivered_100": _SENDING,
    "delivered_500": _SENDING,
    "delivered_vs_huey": f"{_SENDING} huey deletes a task before it is run, writes nothing down, and sends nothing.",
    "delivered_1": (
        "One message is 2 ms of one interpreter: 0.8 ms the request (requests alone takes as much), the rest its part of"
        " transactions of eight statements, each 0.1 ms of SQLAlchemy, which about four senders share. The bare loop writes two"
        " narrow rows. Tried: shared transactions, and record and claim in one (0.5 to 0.8); statements that are compiled once."
        " Other threads cannot help an interpreter that is busy."
    ),
    "in_flight": (
        "A transaction of a hundred messages takes 6 to 10 ms, one after the other on SQLite and two at a time on Postgres;"
        " with four senders and 20 ms of waiting they just fit. Tried: a full request wakes the next sender at once (2.9 to 3.4)."
    ),
    "enqueue_vs_procrastinate": (
        "A hundred messages are 3.2 ms of the producer's processor (1 ms checks that it is JSON, what EnOS takes, and its digest;"
        " identities, sizes and the document are the rest) and 3 to 4 ms of the server's, for five indexes and twelve CHECKs a row."
        " Tried: one statement with the rows as a document (twice as fast as executemany), checks that are done in one pass."
    ),
    "enqueue_vs_pgqueuer": (
        "pgqueuer checks nothing, computes no digest, and has rows of six columns. What a hundred of ours cost is told above, at"
        " enqueue_vs_procrastinate."
    ),
    "upload_vs_toolbelt": (
        "The digest is checked while sending, at 1.3 GB/s on a thread beside the send; the sender, that thread and the receiver"
        " want three processors, and here are two. Without the check, which the toolbelt does not do either, the target is met."
        " Tried: digests on the same thread (a third slower), larger blocks, sendfile (cannot be hashed)."
    ),
    "idle_cpu_sqlite": (
        "A look at the file every 65 ms: each costs a wake-up of the thread, 0.1 to 0.2 ms on this machine whatever it does. Tried:"
        " inotify (0.2 %, but by ctypes, which this project does not use), 40 ms (0.66 %). Seldomer would be seen in wake_sqlite."
    ),
    "idle_cpu_postgresql": "A beat every five seconds, and the threads that wait for it; 0.2 % here.",
}
