"""Text of other machines, made fit to be shown: no escape reaches a terminal, and no newline forges a line of a log."""


def printable(text: str) -> str:
    """The text on one line, without what could steer a terminal or hide in it; whitespace is a space."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " if character.isspace() else "" for character in text)


def printable_lines(text: str) -> str:
    """Each line as `printable`; those after the first are indented, so that none can pass for a line of its own."""
    return "\n  ".join(printable(line) for line in text.split("\n"))
