"""What a build is asked for, and what it will do, before anything is done."""

from dataclasses import dataclass, field
from pathlib import Path

from smallstack.control.building import apt
from smallstack.images.errors import ManifestError
from smallstack.images.manifest import Bootstrap, Manifest, load_manifest
from smallstack.images.normalise import NAMES
from smallstack.images.package_lock import PackageLock, load_lock


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and where it goes: to a server under ``name``, or to ``output``."""

    manifest: Path
    name: str = ""
    base: Path | None = None
    """A directory that stands for the source image."""
    mirror: str = ""
    """Where a bootstrap's packages are fetched, whatever the manifest says."""
    sources: str = "image"
    """Whose apt sources: ``image``, ``host`` or a file of sources.list lines."""
    lock: bool = False
    keep: Path | None = None
    output: Path | None = None
    expires_in_ns: int = 0
    tags: dict[str, str] = field(default_factory=dict)


def plan(options: BuildOptions) -> list[str]:
    """A line for every step of a build; raises what reading the manifest raises."""
    manifest, lock = read_manifest(options)
    recipe = manifest.recipe
    lines = []
    if options.base is not None:
        lines.append(f"copy {options.base}")
    elif recipe.bootstrap is not None:
        where = mirror_of(recipe.bootstrap, options)
        packages = f"{len(lock.bootstrap)} locked packages" if lock else f"packages of {where}"
        lines.append(f"debootstrap {recipe.bootstrap.suite} of {packages}")
    else:
        image = lock.source_image if lock else f"the newest of {recipe.source_image}"
        lines.append(f"lay out the image {image}")
    scripts = {
        name: [f"run {name}/{script}" for script in found]
        for name, found in manifest.scripts.items()
    }
    lines += _overlay_lines(manifest, "files") + scripts.get("pre-install-scripts", [])
    if manifest.packages:
        found = f"{len(lock.packages)} locked packages for " if lock else ""
        lines.append(f"install {found}{', '.join(manifest.packages)}")
    lines += _overlay_lines(manifest, "post-install-files") + scripts.get("scripts", [])
    lines += _overlay_lines(manifest, "post-scripts-files")
    lines += scripts.get("post-cleanup-scripts", []) + scripts.get("tests", [])
    kept = f" but for {', '.join(recipe.keep)}" if recipe.keep else ""
    lines.append(f"normalise{kept}")
    lines.append(f"write {options.output}" if options.output else f"upload {options.name}")
    return lines + [f"warning: {warning}" for warning in manifest.warnings]


def _overlay_lines(manifest: Manifest, name: str) -> list[str]:
    lines = [f"lay {name}/ over it"] if name in manifest.overlays else []
    return lines + ([f"append {name}.append/"] if f"{name}.append" in manifest.overlays else [])


def read_manifest(options: BuildOptions) -> tuple[Manifest, PackageLock | None]:
    """What is to be built, and what it is locked to. Raises ManifestError."""
    manifest = load_manifest(options.manifest)
    unknown = sorted(set(manifest.recipe.keep) - NAMES)
    if unknown:
        known = ", ".join(sorted(NAMES))
        detail = f"Keep: there is no {unknown[0]!r}, but {known}"
        raise ManifestError(path=options.manifest / "manifest", detail=detail)
    return manifest, None if options.lock else load_lock(manifest)


def mirror_of(bootstrap: Bootstrap, options: BuildOptions) -> str:
    """Where a bootstrap's packages are fetched. Blocks."""
    return (
        options.mirror or bootstrap.mirror or apt.own_mirror(bootstrap.suite) or apt.DEFAULT_MIRROR
    )
