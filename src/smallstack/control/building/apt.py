"""apt-get and debootstrap of this machine, as far as they look for packages and fetch them.

They run outside the image with the machine's own network, proxies and certificates, and with a
configuration, lists and archives of their own in the build's directory: nothing of the machine's
comes into the image, and no hook of an image's apt.conf is run out here.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from smallstack.control.building.actions import Run
from smallstack.control.building.confine import BuildError, Confinement
from smallstack.control.building.debs import DebCache, locked, stanzas
from smallstack.control.building.room import in_root
from smallstack.images.manifest import Bootstrap
from smallstack.images.package_lock import LockedPackage
from smallstack.telemetry.errors import describe

DEFAULT_MIRROR: Final = "http://deb.debian.org/debian"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_URI: Final = re.compile(r"'([^']+)' (\S+) (\d+)(?: (?:SHA256:([0-9a-f]{64})|\S*))?")
_EXTRA: Final = ("LANG", "LANGUAGE", "LC_ALL")


def environment() -> dict[str, str]:
    """This machine's environment for its own tools, with messages in English."""
    kept = {name: value for name, value in os.environ.items() if name not in _EXTRA}
    return {**kept, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def architecture() -> str:
    """What this machine's dpkg calls its architecture; raises BuildError."""
    return _ask("dpkg", "--print-architecture").strip()


def own_mirror(suite: str) -> str:
    """Where this machine's apt gets a suite of Debian from; "" when it does not."""
    targets = _ask("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME)")
    for line in targets.splitlines():
        uri, _, rest = line.partition(" ")
        if rest == f"Debian {suite}":
            return uri
    return ""


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment()
        )
    except OSError as error:
        raise BuildError(step=command[0], detail=f"cannot run: {describe(error)}") from error
    if done.returncode:
        raise BuildError(step=" ".join(command[:2]), detail=done.stderr.strip())
    return done.stdout


async def fetch_bootstrap(
    confinement: Confinement, work: Path, bootstrap: Bootstrap, mirror: str, cache: DebCache
) -> list[LockedPackage]:
    """The packages of a bootstrap, fetched and verified by debootstrap, in the cache.

    Raises BuildError.
    """
    into = work / "fetched"
    command = bootstrap_command(bootstrap, into, mirror, ["--download-only"])
    run = Run(title="debootstrap --download-only", command=command)
    await confinement.run([run], environment(), network=True)
    priorities = {}
    for index in sorted((into / "var/lib/apt/lists").glob("*_Packages")):
        for fields in stanzas(index.read_text(errors="replace")):
            name = fields.get("Filename", "").rpartition("/")[2]
            priorities[name] = fields.get("Priority", "")
    files = sorted((into / "var/cache/apt/archives").glob("*.deb"))
    # debootstrap names a file by package, version and architecture; the archive leaves epochs out.
    by_plain = {re.sub(r"_\d+%3a", "_", name): value for name, value in priorities.items()}
    return [
        locked(cache, path, by_plain.get(re.sub(r"_\d+%3a", "_", path.name), "")) for path in files
    ]


def bootstrap_command(
    bootstrap: Bootstrap, target: Path, mirror: str, options: Sequence[str]
) -> list[str]:
    """debootstrap's argument vector."""
    command = ["debootstrap", *options, f"--components={','.join(bootstrap.components)}"]
    if bootstrap.variant:
        command.append(f"--variant={bootstrap.variant}")
    if bootstrap.include:
        names = (re.split("[:=]", name)[0] for name in bootstrap.include)
        command.append(f"--include={','.join(names)}")
    return [*command, bootstrap.suite, str(target), mirror]


class Sources:
    """Where packages come from: lines for sources.list, or an image's or this machine's own."""

    def __init__(self, lines: Sequence[str] = (), etc: Path | None = None) -> None:
        """``etc`` is an etc/apt directory, in which keys and preferences are as well."""
        self.lines = lines
        self.etc = etc

    @classmethod
    def of_mirror(cls, bootstrap: Bootstrap, mirror: str) -> "Sources":
        """The suite of a bootstrap."""
        signed = f" [signed-by={KEYRING}]" if KEYRING.exists() else ""
        parts = " ".join(bootstrap.components)
        return cls([f"deb{signed} {mirror} {bootstrap.suite} {parts}"], Path("/etc/apt"))


class AptFetcher:
    """apt-get with a configuration of its own, looking at the packages of one image."""

    def __init__(
        self, confinement: Confinement, work: Path, root: Path, sources: Sources, cache: DebCache
    ) -> None:
        self._confinement = confinement
        self._work = work / "apt"
        self._cache = cache
        self._environment = environment()
        self._write_configuration(root, sources)

    def _write_configuration(self, root: Path, sources: Sources) -> None:
        for name in ("etc", "lists/partial", "archives/partial", "state"):
            (self._work / name).mkdir(parents=True)
        etc = sources.etc or in_root(root, "/etc/apt")
        listed, parts = etc / "sources.list", etc / "sources.list.d"
        if sources.lines:
            listed, parts = self._work / "etc/sources.list", Path("/dev/null")
            listed.write_text("".join(f"{line}\n" for line in sources.lines))
        status = in_root(root, "/var/lib/dpkg/status")
        if not status.exists():
            status = self._work / "state/status"
            status.touch()
        acquire = [
            line for line in _ask("apt-config", "dump").splitlines() if line.startswith("Acquire::")
        ]
        settings = {
            "APT::Architecture": architecture(),
            "APT::Sandbox::User": "root",
            "Dir::Cache": self._work,
            "Dir::Cache::archives": self._work / "archives",
            "Dir::State": self._work / "state",
            "Dir::State::lists": self._work / "lists",
            "Dir::State::status": status,
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourcelist": listed,
            "Dir::Etc::sourceparts": parts,
            "Dir::Etc::preferences": etc / "preferences",
            "Dir::Etc::preferencesparts": etc / "preferences.d",
            "Dir::Etc::trusted": etc / "trusted.gpg",
            "Dir::Etc::trustedparts": etc / "trusted.gpg.d",
        }
        path = self._work / "apt.conf"
        lines = [*acquire, *(f'{name} "{value}";' for name, value in settings.items())]
        path.write_text("\n".join(lines) + "\n")
        self._environment["APT_CONFIG"] = str(path)

    async def fetch(self, wanted: Sequence[str], recommends: bool) -> list[LockedPackage]:
        """The packages that the image lacks of ``wanted`` and what these need, in the cache.

        Raises BuildError.
        """
        install = ["apt-get", "--yes", "install"]
        install.append("--install-recommends" if recommends else "--no-install-recommends")
        listed = self._work / "uris"
        update = ["apt-get", "update", "--error-on=any"]
        print_uris = [*install, "--print-uris", "-qq", *wanted]
        await self._run(
            Run(title="apt-get update", command=update),
            Run(title="apt-get install --print-uris", command=print_uris, output=str(listed)),
        )
        found = [match.groups() for match in map(_URI.match, _lines(listed)) if match]
        for _, name, size, sha256 in found:
            cached = self._cache.path(sha256) if sha256 else None
            if cached is not None and cached.exists() and cached.stat().st_size == int(size):
                (self._work / "archives" / name).hardlink_to(cached)  # apt checks it
        download = [*install, "--download-only", *wanted]
        await self._run(Run(title="apt-get install --download-only", command=download))
        return [self._take(uri, name) for uri, name, _, _ in found]

    async def fetch_locked(self, packages: Sequence[LockedPackage]) -> None:
        """Packages of a lock that the cache lacks; raises BuildError."""
        into = self._work / "locked"
        into.mkdir()
        names = [f"{package.name}={package.version}" for package in packages]
        download = ["/bin/sh", "-c", 'cd "$0" && exec apt-get download "$@"', str(into), *names]
        await self._run(
            Run(title="apt-get update", command=["apt-get", "update", "--error-on=any"]),
            Run(title="apt-get download", command=download),
        )
        got = {locked(self._cache, path).sha256 for path in sorted(into.glob("*.deb"))}
        for package in packages:
            if package.sha256 not in got:
                detail = "is another file at the mirror than in package-lock: build with --lock"
                raise BuildError(step=package.file, detail=detail)

    async def _run(self, *actions: Run) -> None:
        await self._confinement.run(actions, self._environment, network=True)

    def _take(self, uri: str, name: str) -> LockedPackage:
        path = self._work / "archives" / name
        if uri.startswith("file:") and not path.exists():
            path = Path(unquote(uri.removeprefix("file:")))
        return locked(self._cache, path)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()
