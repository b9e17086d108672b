"""Patterns over names whose segments are split at `:`: `*` is one segment, a last `**` one or more."""

Pattern = tuple[str, ...]


def parse_pattern(text: str) -> Pattern:
    """Raises ValueError with a sentence, for a pattern that means nothing.

    There are no partial wildcards (`room-*` is refused, so that nobody believes it would match).
    """
    segments = tuple(text.split(":"))
    for position, segment in enumerate(segments):
        if "*" not in segment or segment == "*":
            continue
        if segment != "**":
            raise ValueError(f"{text!r}: a `*` stands for a whole segment between colons, not for a part")
        if position != len(segments) - 1:
            raise ValueError(f"{text!r}: `**` may only be the last segment")
    return segments


def matches(pattern: Pattern, segments: list[str]) -> bool:
    """Whether a name with these segments is one of the pattern's."""
    if pattern[-1] == "**":
        if len(segments) < len(pattern):
            return False
        pattern = pattern[:-1]
    elif len(segments) != len(pattern):
        return False
    return all(wanted in ("*", segment) for wanted, segment in zip(pattern, segments, strict=False))
