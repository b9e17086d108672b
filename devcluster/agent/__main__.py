"""`python -m devcluster.agent`: run the node agent until SIGTERM or SIGINT.

Exit codes: 0 told to stop; 1 it could not go on; 2 a wrong command line; 3 this machine does not permit what
the agent needs.
"""

import asyncio
import contextlib
import resource
import signal
import sys

from devcluster.agent import journal, settings

EXIT_NOT_PERMITTED = 3
API_WAIT_SECONDS = 60.0
DESCRIPTORS = 65_536

NOT_PERMITTED = """This machine does not let the devcluster's node agent make namespaces for its pods:
  {error}
It needs Linux 5.12 or newer and either root or unprivileged user namespaces. What stands in the way is often
  - an unprivileged container: give it --privileged, or run outside of it;
  - Ubuntu 24.04 or newer: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root;
  - a hardened kernel: sysctl user.max_user_namespaces, or kernel.unprivileged_userns_clone=1.
Where that cannot be changed, use a real cluster such as kind (https://kind.sigs.k8s.io) and point KUBECONFIG
at it."""


async def serve(given: settings.AgentSettings) -> int:
    """Run the agent; its exit code."""
    from devcluster.agent import api, images, sandbox

    try:
        # In its own folder, which is emptied next: what a kill at this moment leaves must be found.
        await sandbox.check_machine(given.data_dir)
    except sandbox.SandboxError as error:
        sys.stderr.write(NOT_PERMITTED.format(error=error) + "\n")
        return EXIT_NOT_PERMITTED
    running = asyncio.create_task(_run(given))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    # At any moment, its start included. Once: a second signal must not cut the end short.
    for task in (running, stopped):
        task.cancel()
    try:
        await running
    except asyncio.CancelledError:
        return 0
    except (images.ImageTableError, api.ApiError, OSError) as error:
        sys.stderr.write(f"The node agent cannot go on: {error}\n")
        return 1
    return 0


async def _run(given: settings.AgentSettings) -> None:
    from devcluster.agent import agent, api

    async with api.Api.from_kubeconfig(given.kubeconfig) as connection:
        await api.wait_until_reachable(connection, API_WAIT_SECONDS)
        await agent.Agent(given, connection).run()


def _raise_descriptor_limit() -> None:
    """Each container takes four descriptors, each proxied connection two; 1024 is what many shells give."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """The command line."""
    given = settings.parse()
    journal.set_up()
    _raise_descriptor_limit()
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    return asyncio.run(serve(given))


if __name__ == "__main__":
    sys.exit(main())
