"""Which addresses an upload may go to, where somebody else may choose the URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from outbox.errors import ConfigurationError

Network = IPv4Network | IPv6Network

#: Written down here, since what Python calls global differs from version to version, and counts 64:ff9b::/96 and 2002::/16 in.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is this machine
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a carrier's NAT, and where some clouds have their metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # public by its number, and the platform itself inside of Azure
        "169.254.0.0/16",  # link-local, and where most clouds have their metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
#: Of IPv6 only this was ever given out: loopback, unique local, link-local, multicast, NAT64 and the rest are outside of it.
_GIVEN_OUT_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(each)
    for each in (
        "2001::/23",  # protocol assignments, Teredo among them: a tunnel to any IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: the same
        "3fff::/20",
    )
)


@dataclass(frozen=True, slots=True)
class Reach:
    """Public addresses, and those of the `allowed` networks; not this machine, not its neighbours, not what manages them."""

    allowed: tuple[Network, ...] = ()

    def takes(self, address: str) -> bool:
        """Whether a connection may go to an address, as a socket names it; never to what is none."""
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped  # the system connects to that one
        return _is_public(found) or any(found in each for each in self.allowed)


def networks(given: Sequence[str], owner: str) -> tuple[Network, ...]:
    """The networks that were named. Raises ConfigurationError for what is none."""
    if isinstance(given, str):
        raise ConfigurationError(f"{owner}: expected allowed_networks to be a list, such as ['10.20.0.0/16'], got {given!r}")
    found = []
    for each in given:
        try:
            found.append(ip_network(each))
        except ValueError:
            raise ConfigurationError(
                f"{owner}: expected allowed_networks to name networks such as 10.20.0.0/16 or 10.20.0.7, got {each!r}"
            ) from None
    return tuple(found)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in each for each in _NOT_PUBLIC_4)
    return address in _GIVEN_OUT_6 and not any(address in each for each in _NOT_PUBLIC_6)
