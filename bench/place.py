"""The outbox that is measured, for `outbox --app bench.place:outbox`."""

from __future__ import annotations

import os

from outbox import EnosEvents, Outbox

outbox = Outbox(
    os.environ["SCALE_DATABASE"],
    spool=os.environ["SCALE_SPOOL"],
    destinations=[
        EnosEvents(name=name, url=os.environ["SCALE_URL"], org_id="o1", allow_plain_http=True) for name in ("enos", "hub")
    ],
)
