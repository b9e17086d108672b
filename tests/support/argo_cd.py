"""Argo CD's health of an object: its Lua as Argo CD runs it, and its answer as Argo CD takes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lupa.lua51 import LuaRuntime

STATUSES = frozenset({"Healthy", "Progressing", "Degraded", "Suspended"})
"""What a check may say."""

_CONFINE = """
-- Strings have methods in Lua 5.1 as long as their metatable has the library; Argo CD does not open it.
getmetatable("").__index = nil
for _, name in ipairs({"python", "string", "math", "io", "os", "debug", "coroutine", "bit", "jit", "ffi"}) do
  _G[name] = nil
  package.loaded[name] = nil
end
"""


@dataclasses.dataclass(frozen=True)
class Health:
    """What the check says."""

    status: str
    message: str


def health(script: str, obj: Mapping[str, Any]) -> Health:
    """What `script` says of `obj`, the global of that name, with the libraries base, package and table.

    Argo CD runs gopher-lua, a Lua 5.1; here it is the original one, without what Argo CD leaves closed.
    Raises AssertionError where Argo CD would show "Unknown", lupa's LuaError where the script fails.
    """
    lua = LuaRuntime(register_eval=False, unpack_returned_tuples=True)
    lua.execute(_CONFINE)
    lua.globals()["obj"] = lua.table_from(dict(obj), recursive=True)
    answer = dict(lua.execute(script))
    assert answer.keys() <= {"status", "message"}, answer
    assert answer["status"] in STATUSES, answer
    return Health(answer["status"], answer.get("message", ""))
