"""Torture: for as long as asked, whatever works is killed, frozen and cut off at random, and then everything must add up.

python -m tests.torture --minutes 30                        # `make torture MINUTES=30`
python -m tests.torture --minutes 5 --only kills,pauses --database sqlite --seed 7

victims    producers, workers and operators as processes of their own, to be killed
ground     a database with its spool and receiver, who is at work there, and how it all adds up
kills      SIGKILL of producers, workers and operators
pauses     SIGSTOP for longer than the gone time, then SIGCONT
lanes      all that is done, how much of it is asked for, and how it gets its share of the time
table      what was done, what was asked for, and what was wrong
"""
