"""Every SQL statement, in the order of a message's life.

    arriving   enqueue: stream, message, files
    breaker    a destination's row: patience, rate, learned size
    ahead      what comes next, for whoever waits
    claiming   claim: the oldest due messages become one worker's
    recording  record: what the answer made of them
    streams    where each stream stands, and whose turn it is
    shares     the same for ordering keys without an order
    acting     what a person does: replay, cancel, and the audit of it
    purging    purge: final messages go, and the files nobody refers to
    living     workers: beat, gone, rescue, release
    keeping    the spool's rows: what may be freed, what is rubbish
    pausing    ordering keys that a person has paused
    marking    the mark that a database shares with its spool
    causes     what holds a message or a destination up
    looking    status, list, show
    checking   what a checkup reads, every row as it lies there

Functions of a connection; they open no transaction: the verbs do, visibly. Locks are taken in the order worker, destination,
stream, message; a statement that locks several messages skips locked ones or takes them in the order of their ids. A stream's
place, locked after its message, is skipped while somebody else holds it.
"""
