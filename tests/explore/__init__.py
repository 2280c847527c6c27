"""Every interleaving of two workers up to a bound, and long random lives against a model that knows nothing of the code.

    from tests.explore.scopes import deep           # torture: every schedule as far as `seconds` carry
    counts = deep(seconds=600)
    from tests.explore.machine import machine       # torture: so many random lives
    counts = machine(examples=5000, seed=7)

stage       one database in memory, on which operations are taken one transaction at a time
acts        what a worker, its pulse and an operator can do there
truth       what an observer knows who sees everything, and what must hold after every step
explorer    every order of steps, equal states explored once
scopes      what is explored: who is there, what may happen, and how far
breaking    a snippet of a function is replaced while a test runs
model       what an outbox should do, said with sets and lists
machine     random lives of an outbox, compared with the model after every step
world       where these lives take place: a database, a spool, and workers whose requests stand still on their way
weaving     two transactions on one database, statement by statement, in every order that makes a difference
pairs       which two transactions, and what must have come of both
"""
