"""How often it is asked for the class that clusters name."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from tableforge_operator.kube import INGRESS_CLASSES, Kube, NotFoundError, Resource
from tableforge_operator.observe.classes import LASTS_SECONDS, Classes
from tests.support.forward import leap

PAGE = Path(__file__).parents[3] / "docs" / "operator.md"


class Counting:
    """An API server that has every class but one."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        self.asked.append(name)
        if name == "missing":
            raise NotFoundError("there is none", status=404)
        return {}


async def test_a_class_is_asked_for_as_seldom_as_the_page_says_whoever_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leap(monkeypatch)
    api = Counting()
    classes = Classes(cast("Kube", api), INGRESS_CLASSES)
    for _ in range(3):
        assert not await classes.is_missing("nginx")
        assert await classes.is_missing("missing")
        await asyncio.sleep(LASTS_SECONDS / 2 - 1)
    assert api.asked == ["nginx", "missing"]
    await asyncio.sleep(3)
    assert not await classes.is_missing("nginx")
    assert api.asked == ["nginx", "missing", "nginx"]
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"every {LASTS_SECONDS:g} s at most, however many name the same" in page
