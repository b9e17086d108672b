"""The image table: which local program stands for which container image.

The table is a JSON object. A key is a repository without tag (`valkey/valkey`, `busybox`); it matches an
image whose repository is the key or ends with `/` and the key, and the longest key wins. Its value:

    command      argv of the image, its entrypoint; a pod's `command` replaces it
    args         what follows it, the image's CMD; a pod's `command` or `args` replace it
    append_args  what follows in any case, as long as the image's own `command` runs
    programs     {name: {"path": …, "prepend_args": […], "append_args": […]}}: programs the image has under a
                 name; they are what runs where a pod's command (a probe's too) starts with that name
    path         directories put before PATH
    env          variables the image sets; a pod's own win
    working_dir  where it starts; `/` by default
    visible      host paths a container sees even if they lie below /tmp, /var/tmp or /root, which are private

`$(POD_IP)`, `$(POD_NAME)`, `$(POD_NAMESPACE)` and any variable of the container are expanded in `command`,
`args`, `append_args`, `prepend_args` and `env`, as Kubernetes expands them in a pod.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from devcluster.agent.env import expand


class ImageTableError(ValueError):
    """The image table cannot be used; the message names file and field."""


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program that an image has under a name."""

    path: str
    prepend_args: tuple[str, ...] = ()
    append_args: tuple[str, ...] = ()


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the table."""

    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    append_args: tuple[str, ...] = ()
    programs: dict[str, Program] = {}
    path: tuple[str, ...] = ()
    env: dict[str, str] = {}
    working_dir: str = "/"
    visible: tuple[str, ...] = ()

    def argv(
        self, command: Sequence[str] | None, args: Sequence[str] | None, variables: Mapping[str, str]
    ) -> list[str]:
        """What runs for a container's `command` and `args`, with Kubernetes' semantics.

        Empty where neither the image nor the container says what to run.
        """
        own = () if command else self.command
        words = [*(command or own), *(args or (() if command else self.args))]
        argv = self.program([expand(word, variables) for word in words], variables)
        if own:
            argv += [expand(word, variables) for word in self.append_args]
        return argv

    def program(self, argv: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """`argv` with its first word looked up among the image's programs; `argv` itself is not expanded."""
        if not argv or (found := self.programs.get(argv[0])) is None:
            return list(argv)
        before, after = (
            [expand(word, variables) for word in words] for words in (found.prepend_args, found.append_args)
        )
        return [found.path, *before, *argv[1:], *after]

    def host_paths(self) -> list[str]:
        """The existing host paths that the entry names: containers must see them."""
        words = [*self.command, *self.args, *self.append_args, self.working_dir, *self.visible, *self.path]
        words += [program.path for program in self.programs.values()]
        words += [part for value in self.env.values() for part in value.split(":")]
        return sorted(
            {word for word in words if word.startswith("/") and word != "/" and Path(word).exists()}
        )


@dataclasses.dataclass(frozen=True)
class Found:
    """An image of the table and the id under which a pod's status shows it."""

    image: Image
    image_id: str


class ImageTable:
    """Looks images up by the name a pod uses."""

    def __init__(self, images: Mapping[str, Image], source: str) -> None:
        self._images = dict(images)
        self.source = source
        """Where the table came from: error messages name it."""

    @classmethod
    def load(cls, file: Path) -> "ImageTable":
        """Read a table. Raises ImageTableError."""
        try:
            return cls(msgspec.json.decode(file.read_bytes(), type=dict[str, Image]), str(file))
        except (OSError, msgspec.DecodeError) as error:
            raise ImageTableError(f"image table {file}: {error}") from error

    def find(self, name: str) -> Found | None:
        """The entry for an image's name, tag and digest left aside; None where there is none."""
        repository = repository_of(name)
        keys = [key for key in self._images if repository == key or repository.endswith(f"/{key}")]
        if not keys:
            return None
        key = max(keys, key=len)
        digest = hashlib.sha256(msgspec.json.encode(self._images[key])).hexdigest()
        return Found(self._images[key], f"devcluster.local/{key}@sha256:{digest}")


def repository_of(name: str) -> str:
    """An image's name without digest and tag; a registry's port is no tag."""
    return re.sub(r":[^:/]*$", "", name.partition("@")[0])
