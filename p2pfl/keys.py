"""Random keys: every draw in a run comes from a generator seeded by (seed, seat, round, purpose)."""

import hashlib


def random_key(seed: int, purpose: str, *parts: object) -> int:
    """A 63-bit key for a generator, the same on every machine and in every process.

    Args:
        seed: the recipe's.
        purpose: what is drawn, as "shuffle", so that two draws never share a stream.
        parts: seat, round and whatever else tells this draw from others.
    """
    text = "\x1f".join((str(seed), purpose, *(str(part) for part in parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
