"""The real Django: a message is part of `transaction.atomic()`, of the savepoints in it too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import State
from outbox.worker import Worker
from tests.factories import states
from tests.story.conftest import ROOT, Place, eventually

PROGRAM = """
import json, os
import django
from django.conf import settings
from django.db import connection, models, transaction

story = json.loads(os.environ["STORY"])
settings.configure(DATABASES={"default": story["django"]}, USE_TZ=True, TIME_ZONE="America/St_Johns", INSTALLED_APPS=[])
django.setup()

from outbox import EnosEvents, Outbox
from outbox.errors import ConfigurationError, KeyConflict

enos = EnosEvents(name="enos", url=story["url"], org_id="o1", allow_plain_http=True)
outbox = Outbox(story["database"], spool=story["spool"], destinations=[enos], durability="ignore")


class Order(models.Model):
    class Meta:
        app_label = "shop"
        db_table = "django_orders"


def enqueue(key, given=None, **more):
    payload = {"assetId": key, "time": 1579580182824, "events": {"crack": {"severity": 3}}}
    return outbox.enqueue_dbapi(given or connection.cursor(), "enos", payload, key=key, **more)


with connection.schema_editor() as editor:
    editor.create_model(Order)

try:
    enqueue("outside")
except ConfigurationError as error:
    print(error)

with transaction.atomic():
    Order.objects.create()
    enqueue("committed", ordering_key="pump")
    enqueue("by the connection", connection)
    try:
        with transaction.atomic():
            Order.objects.create()
            enqueue("in a savepoint that is rolled back", ordering_key="pump")
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with transaction.atomic():
        Order.objects.create()
        enqueue("in a savepoint")
    assert not enqueue("committed", ordering_key="pump").new
    try:
        enqueue("committed")
    except KeyConflict:
        print("KeyConflict")
    with connection.cursor() as cursor:
        enqueue("by an open cursor", cursor, ordering_key="pump", ordered=False)
        cursor.execute("SELECT count(*) FROM django_orders")
        print(cursor.fetchone())

try:
    with transaction.atomic():
        Order.objects.create()
        enqueue("rolled back")
        raise ZeroDivisionError
except ZeroDivisionError:
    pass

print(Order.objects.count(), connection.get_autocommit(), connection.in_atomic_block)
with connection.schema_editor() as editor:
    editor.delete_model(Order)
"""

IMMEDIATELY = {"transaction_mode": "IMMEDIATE"}


def settings_of(url: str, **options: Any) -> dict[str, Any]:
    """The same database as Django has it."""
    address = sa.make_url(url)
    if address.get_backend_name() == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": address.database, "OPTIONS": options}
    parts = {"NAME": address.database, "USER": address.username, "HOST": address.host, "PORT": address.port}
    return {"ENGINE": "django.db.backends.postgresql", "PASSWORD": address.password or "", "OPTIONS": options, **parts}


@pytest.mark.parametrize("own_way", [False, True], ids=["as it comes", "in its other way"])
def test_a_message_shares_the_fate_of_its_atomic_block(place: Place, own_way: bool) -> None:
    """The other way: SQLite takes the write lock at once, and psycopg has the server put in the values."""
    options = {"sqlite": IMMEDIATELY, "postgresql": {"server_side_binding": True}}[place.database.kind] if own_way else {}
    here = {
        "database": place.url,
        "spool": str(place.spool),
        "url": place.receiver.url,
        "django": settings_of(place.url, **options),
    }

    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(ROOT), "STORY": json.dumps(here)},
        capture_output=True,
        text=True,
    )

    assert 0 == run.returncode, run.stderr
    refused, conflict, counted, ended = run.stdout.splitlines()
    assert "transaction.atomic()" in refused
    assert ("KeyConflict", "(2,)", "2 True False") == (conflict, counted, ended)
    kept = {"committed", "by the connection", "in a savepoint", "by an open cursor"}
    for key in kept:
        place.acknowledge(key)
    assert dict.fromkeys(kept, State.PENDING) == states(place.database)
    with Worker(place.outbox()):
        eventually(lambda: set(states(place.database).values()) == {State.DELIVERED})
