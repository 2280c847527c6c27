"""Torture: for as long as asked, whatever works is killed, frozen and cut off at random, and then everything must add up.

    python -m tests.torture --minutes 30                        # `make torture MINUTES=30`
    python -m tests.torture --minutes 5 --only kills,pauses --database sqlite --seed 7
    python -m tests.torture --minutes 30 --write docs/reliability.md

victims, operator   producers, workers and operators as processes of their own, to be killed
terminal            the outbox of an operator who types commands
victim              one of them, as whoever kills it sees it
knobs               what differs from round to round
ground              a database with its spool and receiver, who is at work there, and how it all adds up
course              one lane's way through its rounds
kills               SIGKILL of producers, workers and operators
pauses              SIGSTOP for longer than the gone time, then SIGCONT
crowd               everybody at once, and nobody is killed
postgres_kills      the database server is stopped at once or killed
lanes               all that is done, how much of it is asked for, and what part of the time it gets
runner              two lanes at a time, side by side, each a process of its own
table               what was done, what was asked for, and what was wrong
"""
