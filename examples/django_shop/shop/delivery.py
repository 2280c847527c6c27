"""The outbox: in Django's own database, which both know by their own words for it."""

import os

from django.conf import settings
from sqlalchemy import URL

from outbox import EnosEvents, Outbox, Token, env

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

_database = settings.DATABASES["default"]
if _database["ENGINE"].endswith("sqlite3"):
    _url = URL.create("sqlite", database=str(_database["NAME"]))
else:
    _url = URL.create(
        "postgresql+psycopg",
        username=_database["USER"],
        password=_database.get("PASSWORD") or None,
        host=_database["HOST"],
        port=_database["PORT"] or None,
        database=_database["NAME"],
    )
_local = os.environ.get("ENOS_IS_LOCAL") == "1"  # a receiver on this machine, without TLS

outbox = Outbox(
    _url,
    spool=settings.BASE_DIR / "spool",
    destinations=[
        EnosEvents(
            name="enos",
            url=os.environ["ENOS_URL"],
            org_id=os.environ["ENOS_ORG_ID"],
            token=Token(os.environ["ENOS_TOKEN_URL"], env("ENOS_APP_KEY"), env("ENOS_APP_SECRET"), allow_plain_http=_local),
            allow_plain_http=_local,
        )
    ],
)
