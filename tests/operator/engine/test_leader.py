"""One leads, the others stand by: taken over at expiry, given away at release, given up when not renewed.

That who renews is not taken over is in `test_takeover.py`, by a clock that no pause of the machine moves.
"""

import asyncio
from collections.abc import Callable

import pytest

from tableforge_operator.kube import LEASES, Kube, Object, UnreachableError
from tableforge_operator.leader import Leader, LeadershipLostError
from tests.operator.engine.operators import until

pytestmark = pytest.mark.cluster

NAME = "test-lease"


@pytest.fixture
def contender(kube: Kube, namespace: str) -> Callable[..., Leader]:
    """One that looks often. Its lease lasts long enough for any machine where no other is asked for:
    `contender("a")`.
    """

    def make(
        identity: str,
        *,
        kube: Kube = kube,
        lease_seconds: float = 600.0,
        renew_deadline_seconds: float = 300.0,
    ) -> Leader:
        return Leader(
            kube,
            namespace=namespace,
            name=NAME,
            identity=identity,
            lease_seconds=lease_seconds,
            renew_deadline_seconds=renew_deadline_seconds,
            retry_seconds=0.2,
        )

    return make


async def spec(kube: Kube, namespace: str) -> Object:
    found: Object = (await kube.get(LEASES, namespace, NAME))["spec"]
    return found


async def test_the_second_one_waits_until_the_first_says_nothing_for_the_leases_duration(
    kube: Kube, namespace: str, contender: Callable[..., Leader]
) -> None:
    one, two = (contender(name, lease_seconds=3.0) for name in ("one", "two"))
    await one.acquire()
    assert one.holds
    first = await spec(kube, namespace)
    assert first["holderIdentity"] == "one"
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(60):
        await two.acquire()
    assert loop.time() - started >= 3.0
    second = await spec(kube, namespace)
    assert second["holderIdentity"] == "two"
    assert second["leaseTransitions"] == first["leaseTransitions"] + 1 == two.transitions
    with pytest.raises(LeadershipLostError, match="another operator"):
        await one.hold()
    assert not one.holds


async def test_a_released_lease_is_free_at_once(
    kube: Kube, namespace: str, contender: Callable[..., Leader]
) -> None:
    one, two = contender("one"), contender("two")
    await one.acquire()
    waiting = asyncio.create_task(two.acquire())
    await asyncio.sleep(0.15)
    await one.release()
    await one.release()
    async with asyncio.timeout(60):  # the lease would have lasted ten times as long
        await waiting
    assert (await spec(kube, namespace))["holderIdentity"] == "two"


async def test_the_leader_gives_up_before_another_may_start_when_the_api_server_is_away(
    kube: Kube, contender: Callable[..., Leader], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = contender("one", lease_seconds=60.0, renew_deadline_seconds=2.0)
    await leader.acquire()

    async def away(*_: object, **__: object) -> Object:
        raise UnreachableError("away")

    monkeypatch.setattr(kube, "get", away)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(LeadershipLostError, match="in time"):
        await leader.hold()
    assert loop.time() - started < 60.0, "before the lease is over"


async def test_the_leader_gives_up_in_time_when_calls_hang(
    kube: Kube, contender: Callable[..., Leader], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = contender("one", lease_seconds=60.0, renew_deadline_seconds=2.0)
    await leader.acquire()

    async def hang(*_: object, **__: object) -> Object:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(kube, "get", hang)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(LeadershipLostError, match="in time"):
        await leader.hold()
    assert loop.time() - started < 60.0, "before the lease is over"


async def test_of_many_contenders_one_leads(contender: Callable[..., Leader]) -> None:
    contenders = [contender(f"c{number}") for number in range(5)]
    tasks = [asyncio.create_task(leader.acquire()) for leader in contenders]
    _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.5)
    assert sum(leader.holds for leader in contenders) == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_number_that_a_fleet_has_seen_is_passed_with_the_next_renewal(
    kube: Kube, namespace: str, contender: Callable[..., Leader]
) -> None:
    one = contender("one")
    await one.acquire()
    assert one.raise_above(40)
    assert one.transitions == 1, "not before the API server has it"
    holding = asyncio.create_task(one.hold())

    async def raised() -> bool:
        return one.transitions == 41

    await until(raised, what="it was renewed")
    assert (await spec(kube, namespace))["leaseTransitions"] == 41
    holding.cancel()
    await one.release()
    two = contender("two")
    await two.acquire()
    assert two.transitions == 42


async def test_a_lease_that_was_deleted_does_not_make_its_holder_look_older(
    kube: Kube, namespace: str, contender: Callable[..., Leader]
) -> None:
    one = contender("one")
    await one.acquire()
    assert one.raise_above(40)
    holding = asyncio.create_task(one.hold())

    async def raised() -> bool:
        return one.transitions == 41

    await until(raised, what="it was renewed")
    lease = await kube.get(LEASES, namespace, NAME)
    await kube.delete(LEASES, namespace, NAME, uid=lease["metadata"]["uid"])

    async def made_anew() -> bool:
        found, _ = await kube.list(LEASES, namespace)
        return any(one["metadata"]["uid"] != lease["metadata"]["uid"] for one in found)

    await until(made_anew, what="it was made anew")
    assert (await spec(kube, namespace))["leaseTransitions"] >= 41
    assert one.transitions >= 41
    holding.cancel()


async def test_no_fleet_can_use_the_numbers_up(contender: Callable[..., Leader]) -> None:
    one = contender("one")
    assert not one.raise_above(2**31 - 2)
    assert not one.raise_above(-1)
    await one.acquire()
    assert one.transitions == 1
