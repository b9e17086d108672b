"""The same test on every Redis: what it sees of a server could depend on the server's version."""

from typing import Final, get_args

import pytest

from tests.support.redis import Binary

every_redis: Final = pytest.mark.parametrize("redis_server", get_args(Binary), indirect=True)
"""For a test of the data plane that takes `redis_server`."""
