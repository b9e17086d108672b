"""What rebalancing says: sentences for the condition, and for Events."""

from collections import Counter
from collections.abc import Sequence

from tableforge_operator.decide.rebalancing.plans import BusyRoom, Obstacle
from tableforge_operator.decide.rebalancing.state import Settings, Work


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 room`, `2 rooms`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def moved(number: int, settings: Settings) -> str:
    """What a plan counts."""
    return count(number, "room" if settings.mode == "Gateway" else "instance")


def uneven(spread: float, settings: Settings) -> str:
    """By how much load differs."""
    return (
        f"Load differs by {spread:.2f} of the mean; clustering.rebalanceThreshold is {settings.threshold:g}"
    )


def obstacle(why: Obstacle, busy: Sequence[BusyRoom], settings: Settings) -> str:
    """What is in the way, and what would help."""
    match why:
        case "RoomTooBusy":
            return (
                f"{_rooms(busy)}: moved, {'it' if len(busy) == 1 else 'each'} would make another instance as "
                "busy. The other rooms are moved away; split it in the application, or give instances more."
            )
        case "NoCapacity":
            return (
                "Who has less to carry is full: more instances (replicas, autoscaling.maxReplicas) or a "
                "higher loadBalancing.maxConnectionsPerInstance would help."
            )
        case "BudgetTooSmall":
            return (
                f"What should move has more members than the {settings.most_clients:,} that may reconnect "
                "in one cycle: raise rollout.maxReconnectsPerSecond or clustering.rebalanceInterval."
            )
        case "RoomsCooling":
            return "What could move has moved lately, and stays for clustering.moveCooldown."
        case "NotRouted":
            return (
                "Instances with less to carry have no address yet at which clients reach them: see the "
                "HTTPRoutes' status, and the Gateway that routing.gateway names."
            )
        case "NothingFits":
            return "No instance has anything that would help elsewhere."


def failures(work: Work) -> str:
    """Why what failed did, or was never begun, the most frequent first; empty where nothing did."""
    whys = Counter(one.why for one in work.parts if one.fate in ("failed", "dropped"))
    return "; ".join(f"{number:,}: {why}" for why, number in whys.most_common(3))


def called_off(work: Work) -> str:
    """What becomes of a plan of which nothing more begins, and why."""
    why = work.stopped if "." in work.stopped else work.stopped.capitalize()  # a field stays as it is written
    if work.sheds:
        return f"{why}: who sends clients elsewhere is told to stop."
    fates = Counter(one.fate for one in work.moves)
    return (
        f"{why}: nothing more is begun. Of {count(len(work.moves), 'room')} {fates['done']:,} moved, "
        f"{fates['waiting']:,} are on the way and go on, {fates['failed'] + fates['dropped']:,} stay."
    )


def _rooms(busy: Sequence[BusyRoom]) -> str:
    named = ", ".join(f"{one.room[:80]!r} on {one.instance} ({count(one.members, 'member')})" for one in busy)
    return f"{'A room is' if len(busy) == 1 else 'Rooms are'} busier than would help elsewhere, {named}"
