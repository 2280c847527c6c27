"""requests-toolbelt sends one file again and again, as its documentation shows it: python toolbelt.py URL PATH.

Bytes a second, of whole uploads: a slice ends with the first that is over after its time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import requests
from requests_toolbelt import MultipartEncoder
from turns import take


def main(url: str, path: str) -> None:
    size = Path(path).stat().st_size
    with requests.Session() as session:
        session.trust_env = False  # neither side looks for a proxy

        def upload() -> int:
            with open(path, "rb") as file:  # noqa: PTH123 - as its documentation does
                form = MultipartEncoder(fields={"file": (Path(path).name, file, "application/octet-stream")})
                session.post(url, data=form, headers={"Content-Type": form.content_type}).raise_for_status()
            return size

        def work(seconds: float) -> float:
            began = time.perf_counter()
            sent = 0
            while not sent or time.perf_counter() - began < seconds:
                sent += upload()
            return sent / (time.perf_counter() - began)

        take(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
