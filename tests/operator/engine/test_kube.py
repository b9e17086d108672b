"""The API server's answers as types, and watches that end as they should."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Devcluster
from tableforge_operator.kube import (
    LEASES,
    PODS,
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kube,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
    resource_of,
)
from tableforge_operator.master_key import SECRET_NAME, MasterKeyError, master_key
from tableforge_operator.pace import HOLD_LIMIT_SECONDS
from tests.operator.engine.faults import ApiProxy, Fault, of
from tests.support.forward import forward

pytestmark = pytest.mark.cluster

CONFIG_MAPS = resource_of("v1", "ConfigMap")


def config_map(namespace: str, name: str = "one", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"x": "y"}},
        "data": data,
    }


async def test_refusals_are_types(kube: Kube, namespace: str, operator_kubeconfig: Path) -> None:
    with pytest.raises(NotFoundError):
        await kube.get(CONFIG_MAPS, namespace, "none")
    await kube.create(config_map(namespace))
    with pytest.raises(AlreadyExistsError):
        await kube.create(config_map(namespace))
    with pytest.raises(InvalidError, match="nonsense"):
        await kube.apply({**config_map(namespace), "nonsense": 1}, force=True)
    with pytest.raises(InvalidError):
        await kube.apply({**config_map(namespace), "data": {"a b": "c"}}, force=True)
    wrong = config_map(namespace)
    wrong["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(ConflictError):
        await kube.apply(wrong, force=True)
    async with await Kube.connect(operator_kubeconfig) as operator:
        with pytest.raises(ForbiddenError):
            await operator.list(resource_of("v1", "Secret"), namespace)


async def test_every_character_reaches_the_api_server_as_it_is(kube: Kube, namespace: str) -> None:
    text = (
        '\U0001f680 \U000e1995 \u00e9 \u6f22 \t\n \\ud83d\\ude80 " \x07 \x7f \x85 \x86 \u2028 \u2029 \ufffe'
    )
    applied = await kube.apply(config_map(namespace, text=text), force=False)
    assert applied["data"]["text"] == text
    merged = await kube.merge(CONFIG_MAPS, namespace, "one", {"data": {"more": text}}, field_manager="tests")
    assert merged["data"] == {"text": text, "more": text}


async def test_an_apply_without_force_takes_no_field_of_others(kube: Kube, namespace: str) -> None:
    await kube.apply(config_map(namespace, a="theirs"), field_manager="other", force=True)
    with pytest.raises(ConflictError):
        await kube.apply(config_map(namespace, a="ours"), force=False)
    assert (await kube.apply(config_map(namespace, a="ours"), force=True))["data"] == {"a": "ours"}


async def test_no_answer_is_unreachable_and_a_bad_token_unauthorized(
    installed: Devcluster, tmp_path: Path
) -> None:
    text = installed.kubeconfig.read_text()
    away = tmp_path / "away"
    away.write_text(text.replace(installed.api_url, "https://127.0.0.1:1"))
    async with await Kube.connect(away) as kube:
        with pytest.raises(UnreachableError):
            await kube.get(PODS, "default", "x")
    async with await Kube.connect(installed.kubeconfig) as kube:
        kube.configuration.api_key["BearerToken"] = "Bearer nonsense"
        kube.configuration.cert_file = kube.configuration.key_file = None
    async with Kube(kube.configuration) as stranger:
        with pytest.raises(UnauthorizedError):
            await stranger.get(PODS, "default", "x")


async def test_who_is_told_to_wait_asks_for_nothing_else_meanwhile_but_keeps_the_lease(
    namespace: str, operator_kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ApiProxy(operator_kubeconfig) as proxy:
        proxy.inject(Fault(of("pods"), status=429, headers={"Retry-After": "20"}, times=1))
        async with await Kube.connect(proxy.kubeconfig(tmp_path / "proxied")) as kube:
            loop = asyncio.get_running_loop()
            started = loop.time()
            with pytest.raises(TooManyRequestsError) as refused:
                await kube.list(PODS, namespace)
            assert refused.value.retry_after_seconds == 20
            waiting = [asyncio.create_task(kube.list(CONFIG_MAPS, namespace)) for _ in range(3)]
            with contextlib.suppress(NotFoundError):
                await kube.get(LEASES, "tableforge-system", "tableforge-operator")
            assert not any(task.done() for task in waiting), "the lease is asked for at once"
            forward(monkeypatch, 19)  # nobody waits for the rest of it here
            await asyncio.gather(*waiting)
            assert loop.time() - started >= 19.9


async def test_a_wait_that_makes_no_sense_is_bounded(
    namespace: str, operator_kubeconfig: Path, tmp_path: Path
) -> None:
    async with ApiProxy(operator_kubeconfig) as proxy:
        for given, taken in (("99999999999999", HOLD_LIMIT_SECONDS), ("soon", 1), ("-1", 1), ("²", 1)):
            fault = proxy.inject(Fault(of("pods"), status=503, headers={"Retry-After": given}))
            async with await Kube.connect(proxy.kubeconfig(tmp_path / "proxied")) as kube:
                with pytest.raises(TooManyRequestsError) as refused:
                    await kube.list(PODS, namespace)
            assert refused.value.retry_after_seconds == taken
            proxy.remove(fault)


async def test_a_long_list_is_read_page_by_page(kube: Kube, namespace: str) -> None:
    for start in range(0, 600, 50):
        await asyncio.gather(
            *(kube.create(config_map(namespace, f"c{number}")) for number in range(start, start + 50))
        )
    items, version = await kube.list(CONFIG_MAPS, namespace, label_selector="x=y")
    assert len({item["metadata"]["name"] for item in items}) == 600
    assert {item["kind"] for item in items} == {"ConfigMap"}
    assert version.isdecimal()


async def test_a_watch_tells_what_happens_after_the_list(kube: Kube, namespace: str) -> None:
    before = await kube.create(config_map(namespace))
    _, version = await kube.list(CONFIG_MAPS, namespace)
    events = kube.watch(CONFIG_MAPS, namespace, resource_version=version, label_selector="x=y")
    await kube.apply(config_map(namespace, a="1"), force=True)
    await kube.delete(CONFIG_MAPS, namespace, "one", uid=before["metadata"]["uid"])
    big = "x" * 900_000  # longer than the transport's own buffer for a line
    await kube.create(config_map(namespace, "big", a=big))
    async with asyncio.timeout(30):
        seen = [await anext(events) for _ in range(3)]
    assert [event.type for event in seen] == ["MODIFIED", "DELETED", "ADDED"]
    assert seen[2].object["data"]["a"] == big


async def test_the_master_key_is_made_once(kube: Kube, namespace: str) -> None:
    first, second = await asyncio.gather(master_key(kube, namespace), master_key(kube, namespace))
    assert first == second == await master_key(kube, namespace)
    assert len(first) == 32


async def test_a_master_key_that_cannot_be_used_is_not_replaced(kube: Kube, namespace: str) -> None:
    await kube.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET_NAME, "namespace": namespace},
            "stringData": {"key": "short"},
        }
    )
    with pytest.raises(MasterKeyError, match=f"{namespace}/{SECRET_NAME}"):
        await master_key(kube, namespace)
