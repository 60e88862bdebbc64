"""`p2pfl evaluate`."""

EXAMPLES = ""


def command() -> None:
    """To come."""
