"""The way to a destination: through which proxy, whom to trust there, and what we show of ourselves."""

from __future__ import annotations

import os
from dataclasses import dataclass

from outbox.errors import ConfigurationError
from outbox.secret import Secret, as_secret


@dataclass(frozen=True, kw_only=True)
class Route:
    """How uploads get to a destination, and requests to its token service. What is not said is as a worker's transport has it.

    `proxy` is the address of an HTTP proxy, such as `http://proxy.example:3128`, or a Secret that holds one: it may have a user
    and a password in it. What goes to https:// passes it in a tunnel (CONNECT), unseen. `ca_file` is a file of certificates
    (PEM) of the authorities to trust, instead of those that come with certifi. `client_cert` is a file with the certificate
    (PEM) that is shown to a server that asks for one, and `client_key` one with its key, unencrypted, if that is not in the
    same file: both are read for each new connection, so that they may be exchanged while a worker runs. `proxy_decides` says
    that the proxy itself refuses what is no public address: else a destination with `public_only` sends nothing to a proxy.

    Raises ConfigurationError for a key without a certificate. Files are looked for when something is sent.
    """

    proxy: Secret | str | None = None  #: the address of an HTTP proxy
    ca_file: str | os.PathLike[str] | None = None  #: the authorities to trust (PEM), instead of certifi's
    client_cert: str | os.PathLike[str] | None = None  #: the certificate to show (PEM)
    client_key: str | os.PathLike[str] | None = None  #: its key, if that is in a file of its own
    proxy_decides: bool = False  #: the proxy itself refuses what is no public address

    def __post_init__(self) -> None:
        if self.client_key is not None and self.client_cert is None:
            raise ConfigurationError("a route has a client_key without a client_cert; say where the certificate is")
        if self.proxy is not None:
            object.__setattr__(self, "proxy", as_secret(self.proxy))  # an address may hold a password: no repr shows it

    @property
    def proxy_address(self) -> str | None:
        """The address of the proxy. Raises ConfigurationError when it comes from a place where there is none."""
        return None if self.proxy is None else as_secret(self.proxy).reveal()

    @property
    def certificate(self) -> tuple[str, str] | None:
        """Where the certificate that we show is, and its key."""
        if self.client_cert is None:
            return None
        return os.fspath(self.client_cert), os.fspath(self.client_key or self.client_cert)
