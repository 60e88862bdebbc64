"""`p2pfl peers`."""

EXAMPLES = ""


def command() -> None:
    """To come."""
