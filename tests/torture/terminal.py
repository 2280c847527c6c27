"""The outbox of an operator at a terminal: `outbox --app tests.torture.terminal:outbox`."""

import json
import os

from tests.torture.victims import outbox_of

outbox = outbox_of(json.loads(os.environ["STORY"]))
