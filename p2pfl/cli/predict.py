"""`p2pfl predict`."""

EXAMPLES = ""


def command() -> None:
    """To come."""
