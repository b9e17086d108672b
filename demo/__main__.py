"""`python -m demo` shows the whole story; `up` leaves it running; `down` stops it."""

import argparse
import asyncio
import sys

from demo import story, upkeep
from demo.kubectl import KubectlError
from demo.screen import DemoError
from devcluster.errors import DevclusterError


def main() -> int:
    """Run one of the three; the exit code is 0 where everything was seen to work."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "action",
        nargs="?",
        default="show",
        choices=["show", "up", "down"],
        help="show (the default): every chapter, then clean-up; up: start and leave running; down: stop that",
    )
    action = parser.parse_args().action
    actions = {"show": story.show, "up": upkeep.up, "down": upkeep.down}
    try:
        asyncio.run(actions[action]())
    except (DevclusterError, KubectlError, DemoError) as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130
    return 0


sys.exit(main())
