"""Label selectors as they stand in a query, such as `app=web,tier in (a, b),!old`."""

import re
from collections.abc import Callable, Mapping

Labels = Mapping[str, str]
Selector = Callable[[Labels], bool]

_TERM = re.compile(r"\s*(?:\([^)]*\)|[^,(])+")
_SET = re.compile(r"([^\s!=]+)\s+(in|notin)\s*\(([^)]*)\)")
_EQUAL = re.compile(r"([^\s!=]+)\s*(==|=|!=)\s*([^\s!=]*)")
_THERE = re.compile(r"(!?)\s*([^\s!=()]+)")


def parse(text: str) -> Selector:
    """Whether labels match. Raises ValueError where `text` is no selector."""
    terms = [_term(part.strip()) for part in _TERM.findall(text) if part.strip()]
    return lambda labels: all(term(labels) for term in terms)


def _term(text: str) -> Selector:
    if found := _SET.fullmatch(text):
        key, values = found[1], {value.strip() for value in found[3].split(",")}
        if found[2] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.fullmatch(text):
        key, value = found[1], found[3]
        if found[2] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _THERE.fullmatch(text):
        key, wanted = found[2], not found[1]
        return lambda labels: (key in labels) == wanted
    raise ValueError(f"{text!r} is no label selector")
