"""Hosts in network namespaces: a small LAN with real interfaces. Linux and root only; ask `namespaces_available`."""

from p2pfl.chaos.hosts import Host, heal, lan, namespaces_available, split

__all__ = ["Host", "heal", "lan", "namespaces_available", "split"]
