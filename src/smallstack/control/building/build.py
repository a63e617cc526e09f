"""Builds an image of a manifest::

    base       SourceImage fetched and laid out, or debootstrap's packages fetched …
               … and bootstrapped without a network
    files      files/, files.append/, pre-install-scripts/        in the image, confined
    fetch      apt-get looks and fetches, outside the image, with the machine's network
    install    the image's own apt-get, without a network         in the image, confined
    scripts    the rest of the manifest, tests                    in the image, confined
    normalise  see `images.normalise`                             in the image, confined
    tree       read once, uploaded or put out

Only ``fetch`` reaches a network, unless the manifest gives it to scripts. Everything lies in one
work directory until the end; a failure leaves nothing.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from smallstack.client.imageserver import ImageServerClient
from smallstack.control.building import apt
from smallstack.control.building.actions import DEBS, MANIFEST, Action, Lay, Normalise, Run
from smallstack.control.building.checkout import Checkout, checkout
from smallstack.control.building.confine import BuildError, BuildLog, Confinement
from smallstack.control.building.debs import (
    DebCache,
    built_at,
    installed_packages,
    write_repository,
)
from smallstack.control.building.plan import BuildOptions, mirror_of, read_manifest
from smallstack.control.building.publish import (
    check_output,
    copy_tree,
    newest_mtime,
    put_out,
    scanned,
)
from smallstack.control.building.room import in_root, work_directory
from smallstack.control.image_server import ImageServer
from smallstack.control.images import (
    Added,
    Progress,
    check_new,
    expiry,
    get_image,
    show_image,
    upload_image,
)
from smallstack.images.build import Report, Sink, from_directory
from smallstack.images.computed import computed_files, with_computed_files
from smallstack.images.errors import ManifestError
from smallstack.images.manifest import Bootstrap, Manifest
from smallstack.images.model import tree_digest
from smallstack.images.package_lock import (
    LockedPackage,
    PackageLock,
    total_size,
    write_lock,
)
from smallstack.proto.filesystem import FileSystem
from smallstack.proto.image import Annotation, Filter, Image, Package, Triggers
from smallstack.proto.kinds import Hash
from smallstack.settings import cache_directory
from smallstack.telemetry.errors import describe

TEST_LIMIT: Final = 10
"""Seconds for one of a manifest's tests, as in the ecosystem."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DPKG: Final = ("--force-unsafe-io", "--force-confdef", "--force-confold")


@dataclass
class Built:
    """A finished build."""

    digest: str
    tree: FileSystem
    epoch: int
    packages: list[Package]
    warnings: list[str]
    added: Added | None = None
    lock: Path | None = None


@dataclass
class Base:
    """What a build starts from."""

    name: str = ""
    tree: FileSystem | None = None
    image: Image | None = None
    bootstrap: list[LockedPackage] = field(default_factory=list)


async def build_image(
    options: BuildOptions,
    server: ImageServer | None,
    progress: Progress,
    tell: Callable[[str], None],
    echo: Callable[[str], None] | None = None,
) -> Built:
    """Build an image and add it to a server, or put it out. ``tell`` gets a line for each phase.

    Raises BuildError, ManifestError, ImageError, and what reading and uploading raises.
    """
    if os.geteuid() != 0:
        raise BuildError(step="imagetool build", detail="needs root: it makes namespaces")
    manifest, lock = await asyncio.to_thread(read_manifest, options)
    if server is not None and options.name:
        await check_new(server, options.name, options.expires_in_ns)
    for place in (options.output, options.keep):
        if place is not None:
            check_output(place)
    with work_directory(cache_directory() / "builds") as work:
        log = BuildLog(work / "log", echo)
        try:
            building = _Building(options, manifest, lock, server, work, log, progress, tell)
            built = await building.run()
        except BaseException:
            try:
                await _keep(options, work / "root")
            except (BuildError, OSError) as error:  # no reason to hide the first one
                tell(f"the tree could not be kept: {describe(error)}")
            raise
        finally:
            log.close()
        await _keep(options, work / "root")
        return built


async def _keep(options: BuildOptions, root: Path) -> None:
    if options.keep is not None and root.exists():
        await asyncio.to_thread(put_out, root, options.keep)


class _Building:
    """One build."""

    def __init__(
        self,
        options: BuildOptions,
        manifest: Manifest,
        lock: PackageLock | None,
        server: ImageServer | None,
        work: Path,
        log: BuildLog,
        progress: Progress,
        tell: Callable[[str], None],
    ) -> None:
        self.options = options
        self.manifest = manifest
        self.recipe = manifest.recipe
        self.lock = lock
        self.server = server
        self.work = work
        self.root = work / "root"
        self.log = log
        self.progress = progress
        self.tell = tell
        self.cache = DebCache(cache_directory() / "packages")
        self.confinement = Confinement(work, log, lambda _: None)
        self.started_ns = time.time_ns()
        self.epoch = 0
        self.checkout = Checkout()
        self.warnings = list(manifest.warnings)

    async def run(self) -> Built:
        """See `build_image`."""
        self.checkout = await asyncio.to_thread(checkout, self.manifest.directory)
        if self.checkout.changed:
            self.warnings.append("the manifest differs from its commit: none is recorded")
        self.epoch = self.checkout.time
        base = await self._base()
        with self._phase("files"):
            await self._confined([*self._overlay("files"), *self._scripts("pre-install-scripts")])
        packages = await self._packages()
        with self._phase("scripts, tests, normalise"):
            await self._confined(self._last_actions())
        installed = installed_packages(self.root)
        built = await self._publish(base, installed)
        if self.options.lock:
            lock = self._new_lock(base, packages)
            built.lock = await asyncio.to_thread(write_lock, self.manifest, lock)
        return built

    def _new_lock(self, base: Base, packages: list[LockedPackage]) -> PackageLock:
        bootstrap = self.recipe.bootstrap
        return PackageLock(
            source_image=base.name,
            source_tree=tree_digest(base.tree).hex() if base.tree is not None else "",
            bootstrap_suite=bootstrap.suite if bootstrap else "",
            bootstrap_include=bootstrap.include if bootstrap else [],
            bootstrap=base.bootstrap,
            package_list=self.manifest.packages,
            packages=packages,
        )

    async def _base(self) -> Base:
        if self.options.base is not None:
            with self._phase("base"):
                base = await self._copied(self.options.base)
        elif self.recipe.bootstrap is not None:
            base = Base(bootstrap=await self._bootstrapped(self.recipe.bootstrap))
        else:
            with self._phase("base"):
                base = await self._source_image()
        if base.tree is not None:
            self._is_input(newest_mtime(base.tree))
            found = tree_digest(base.tree).hex()
            if self.lock is not None and self.lock.source_tree not in {"", found}:
                detail = "it was made for another source image: build with --lock to make it anew"
                raise ManifestError(path=self.manifest.directory / "package-lock", detail=detail)
        return base

    async def _copied(self, source: Path) -> Base:
        if not source.is_dir():
            raise BuildError(step=str(source), detail="is no directory to start from")
        await asyncio.to_thread(copy_tree, source, self.root)
        return Base(tree=await asyncio.to_thread(scanned, self.root))

    async def _source_image(self) -> Base:
        if self.server is None:
            raise BuildError(step="SourceImage", detail="needs an image server, or --base")
        async with self.server.connect() as client:
            name = self.lock.source_image if self.lock else ""
            name = name or await self._newest_image(ImageServerClient(client))
            image, _ = await show_image(client, name)
        self.warnings += await get_image(self.server, name, self.root, self.progress)
        return Base(name=name, tree=image.file_system, image=image)

    async def _newest_image(self, images: ImageServerClient) -> str:
        """The image that SourceImage names, or the newest in the directory that it names."""
        source = self.recipe.source_image
        if await images.check_image(source):
            return source
        found = ""
        if await images.check_directory(source):
            found = await images.find_latest_image(
                source,
                build_commit_id=self.recipe.source_image_git_commit_id,
                tags=self.recipe.source_image_tags_to_match,
            )
        if not found:
            detail = f"SourceImage: there is no image {source!r} and none in such a directory"
            raise ManifestError(path=self.manifest.directory / "manifest", detail=detail)
        return found

    async def _bootstrapped(self, bootstrap: Bootstrap) -> list[LockedPackage]:
        """Make the first tree of packages in the cache, without a network; what they are."""
        mirror = await asyncio.to_thread(mirror_of, bootstrap, self.options)
        with self._phase("fetch the bootstrap", lambda seconds: _sizes(packages, seconds)):
            if self.lock is not None:
                packages = self.lock.bootstrap
                await self._complete(packages, apt.Sources.of_mirror(bootstrap, mirror), "first")
            else:
                packages = await apt.fetch_bootstrap(
                    self.confinement, self.work, bootstrap, mirror, self.cache
                )
        with self._phase("bootstrap"):
            repository = self.work / "repository"
            await asyncio.to_thread(self.cache.lay_out, packages, repository / "pool")
            architecture = apt.architecture()
            await asyncio.to_thread(
                write_repository, repository, bootstrap.suite, packages, architecture
            )
            self._are_inputs(packages)
            await self._debootstrap(bootstrap, repository)
        return packages

    async def _debootstrap(self, bootstrap: Bootstrap, repository: Path) -> None:
        single = Bootstrap(
            suite=bootstrap.suite, variant=bootstrap.variant, include=bootstrap.include
        )
        command = apt.bootstrap_command(
            single, self.root, f"file://{repository}", ["--no-check-gpg"]
        )
        environment = {**apt.environment(), **self._environment()}
        await self.confinement.run([Run(title="debootstrap", command=command)], environment)
        for name in ("hostname", "resolv.conf"):  # this machine's
            (self.root / "etc" / name).unlink(missing_ok=True)
        parts = " ".join(bootstrap.components)
        mirror = bootstrap.mirror or apt.DEFAULT_MIRROR
        line = f"deb {mirror} {bootstrap.suite} {parts}\n"
        (self.root / "etc/apt/sources.list").write_text(line)

    async def _packages(self) -> list[LockedPackage]:
        """Fetch and install what package-list names."""
        if not self.manifest.packages:
            return []
        with self._phase("fetch packages", lambda seconds: _sizes(packages, seconds)):
            if self.lock is not None:
                packages = self.lock.packages
                await self._complete(packages, self._sources(), "second")
            else:
                fetcher = apt.AptFetcher(
                    self.confinement, self.work, self.root, self._sources(), self.cache
                )
                packages = await fetcher.fetch(
                    self.manifest.packages, self.recipe.install_recommends
                )
        with self._phase("install packages"):
            self._are_inputs(packages)
            debs = self.work / "debs"
            await asyncio.to_thread(self.cache.lay_out, packages, debs)
            await self._confined(self._install(packages), debs=debs)
        return packages

    def _install(self, packages: list[LockedPackage]) -> list[Action]:
        if not packages:
            return []
        options = [f"--option=DPkg::Options::={option}" for option in _DPKG]
        options += ["--option=APT::Sandbox::User=root", "--option=Dpkg::Use-Pty=0"]
        options += ["--option=Dir::Etc::sourcelist=/dev/null"]
        options += ["--option=Dir::Etc::sourceparts=/dev/null"]
        files = [f"{DEBS}/{package.file}" for package in packages]
        command = ["apt-get", "--yes", "--allow-downgrades", "--no-install-recommends", *options]
        actions: list[Action] = [
            Run(title="apt-get install", command=[*command, "install", *files])
        ]
        asked = {name.partition("=")[0].partition(":")[0] for name in self.manifest.packages}
        others = sorted({package.name for package in packages} - asked)
        if others:
            actions.append(Run(title="apt-mark auto", command=["apt-mark", "auto", *others]))
        return actions

    async def _complete(
        self, packages: list[LockedPackage], sources: "apt.Sources", name: str
    ) -> None:
        """Fetch what the cache lacks of a lock."""
        missing = [
            package for package in packages if not await asyncio.to_thread(self.cache.has, package)
        ]
        if missing:
            fetcher = apt.AptFetcher(
                self.confinement, self.work / name, self.root, sources, self.cache
            )
            await fetcher.fetch_locked(missing)

    def _sources(self) -> "apt.Sources":
        if self.options.sources == "host":
            return apt.Sources(etc=Path("/etc/apt"))
        if self.options.sources != "image":
            path = Path(self.options.sources)
            try:
                return apt.Sources(path.read_text().splitlines(), Path("/etc/apt"))
            except (OSError, UnicodeDecodeError) as error:
                raise BuildError(step=str(path), detail=str(error)) from error
        bootstrap = self.recipe.bootstrap
        own = self.manifest.directory / "files/etc/apt"
        if bootstrap is not None and not own.exists():
            return apt.Sources.of_mirror(bootstrap, mirror_of(bootstrap, self.options))
        return apt.Sources()

    def _last_actions(self) -> list[Action]:
        actions = [*self._overlay("post-install-files"), *self._scripts("scripts")]
        actions += [*self._overlay("post-scripts-files"), *self._scripts("post-cleanup-scripts")]
        own = self.manifest.scripts.get("tests", [])
        if own:
            actions.append(Lay(directory="tests", under="/tests"))
        inherited = in_root(self.root, "/tests")
        names = [p.name for p in inherited.iterdir()] if inherited.is_dir() else []
        actions += [
            Run(title=f"tests/{name}", command=[f"/tests/{name}"], limit=TEST_LIMIT)
            for name in sorted({*own, *names})
        ]
        actions.append(
            Normalise(
                started_ns=self.started_ns,
                keep=self.recipe.keep,
                filter_lines=self.recipe.filter_lines,
            )
        )
        return actions

    def _overlay(self, name: str) -> Iterator[Action]:
        owners = {
            path: (owner.uid, owner.gid, owner.mode) for path, owner in self.manifest.owners.items()
        }
        if name in self.manifest.overlays:
            yield Lay(directory=name, owners=owners)
        if f"{name}.append" in self.manifest.overlays:
            yield Lay(directory=f"{name}.append", append=True, owners=owners)

    def _scripts(self, directory: str) -> Iterator[Action]:
        for name in self.manifest.scripts.get(directory, []):
            yield Run(
                title=f"{directory}/{name}",
                command=[f"{MANIFEST}/{directory}/{name}"],
                limit=self.recipe.script_time_limit,
            )

    async def _confined(self, actions: list[Action], debs: Path | None = None) -> None:
        if actions:
            await self.confinement.run(
                actions,
                self._environment(),
                root=self.root,
                manifest=self.manifest.directory,
                debs=debs,
                network=self.recipe.script_network and debs is None,
                epoch=self.epoch,
            )

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "DEBIAN_FRONTEND": "noninteractive",
            "DEBCONF_NONINTERACTIVE_SEEN": "true",
            "SOURCE_DATE_EPOCH": str(self.epoch),
        }

    def _is_input(self, seconds: int) -> None:
        """The epoch is the newest of the inputs, unless the manifest fixes it."""
        fixed = self.recipe.source_date_epoch
        self.epoch = max(self.epoch, seconds) if fixed is None else fixed

    def _are_inputs(self, packages: list[LockedPackage]) -> None:
        for package in packages:
            self._is_input(built_at(self.cache.path(package.sha256)))

    async def _publish(self, base: Base, installed: list[Package]) -> Built:
        report = Report()
        added = None
        image = self._image(base, installed)
        computed = list(self.manifest.computed)
        if self.manifest.computed_added and base.tree is not None:
            computed = [*computed_files(base.tree), *computed]

        def read(sink: Sink, report: Report) -> FileSystem:
            with self.log.path.open("rb", buffering=0) as file:
                size = self.log.path.stat().st_size
                if size:
                    image.build_log = Annotation(object=Hash(sink.add(file, size)))
            return with_computed_files(from_directory(self.root, sink, report=report), computed)

        with self._phase("read" if self.options.output else "read and upload"):
            self.log.flush()
            if self.server is not None and self.options.name and self.options.output is None:
                if self.options.expires_in_ns:
                    image.expires_at = expiry(self.options.expires_in_ns)
                added = await upload_image(
                    self.server, self.options.name, image, read, self.progress
                )
                assert image.file_system is not None
                tree = image.file_system
                self.warnings += added.warnings
            else:
                scan = partial(scanned, self.root, report)
                tree = with_computed_files(await asyncio.to_thread(scan), computed)
                self.warnings += report.warnings()
        if self.options.output is not None:
            with self._phase(f"write {self.options.output}"):
                await asyncio.to_thread(put_out, self.root, self.options.output)
        digest = tree_digest(tree).hex()
        return Built(digest, tree, self.epoch, installed, self.warnings, added)

    def _image(self, base: Base, installed: list[Package]) -> Image:
        manifest, source = self.manifest, base.image or Image()
        path_filter, triggers = manifest.filter, manifest.triggers
        if path_filter is not None and manifest.filter_added and source.filter is not None:
            lines = dict.fromkeys([*source.filter.filter_lines, *path_filter.filter_lines])
            path_filter = Filter(filter_lines=list(lines))
        if triggers is not None and manifest.triggers_added and source.triggers is not None:
            triggers = Triggers(triggers=[*source.triggers.triggers, *triggers.triggers])
        return Image(
            build_branch=self.checkout.branch,
            build_commit_id=self.checkout.commit,
            build_git_url=self.checkout.url,
            filter=path_filter,
            triggers=triggers,
            owner_groups=manifest.image_owners.groups,
            owner_users=manifest.image_owners.users,
            packages=installed,
            source_image=base.name,
            tags={**manifest.tags, **self.options.tags},
        )

    @contextmanager
    def _phase(self, name: str, what: Callable[[float], str] | None = None) -> Iterator[None]:
        """Times a phase; ``what`` says how much it was, with its rate."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        detail = f": {what(seconds)}" if what else ""
        self.tell(f"{name}{detail} ({seconds:.1f} s)")


def _sizes(packages: list[LockedPackage], seconds: float) -> str:
    mebibytes = total_size(packages) / 2**20
    return f"{len(packages)} packages, {mebibytes:.1f} MiB, {mebibytes / seconds:.1f} MiB/s"
