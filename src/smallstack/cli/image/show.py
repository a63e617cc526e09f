"""``imagetool show``: what is known of an image, and what is in it."""

import stat
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from smallstack.cli.image.target import ImageTarget
from smallstack.cli.output import emit_record, emit_rows, format_option
from smallstack.control.images import show_image
from smallstack.images.model import Summary
from smallstack.proto.filesystem import COMPUTED, FileSystem, Inode
from smallstack.proto.image import Image
from smallstack.proto.kinds import Time

COLUMNS = ("mode", "links", "uid", "gid", "size", "mtime", "path", "content", "xattrs")


@click.command("show")
@click.argument("name")
@click.option("--files", is_flag=True, help="list every inode instead")
@format_option()
@click.pass_obj
def command(target: ImageTarget, name: str, files: bool, output: str) -> None:
    """Show what is known of the image NAME, or with --files all that is in it."""
    image, summary = target.run(lambda client: show_image(client, name))
    if files:
        assert image.file_system is not None
        emit_rows(list(_rows(image.file_system)), output, COLUMNS)
    else:
        emit_record(_record(name, image, summary), output)


def _record(name: str, image: Image, summary: Summary) -> dict[str, Any]:
    return {
        "name": name,
        "created_on": _time(image.created_on),
        "created_by": image.created_by,
        "created_for": image.created_for,
        "expires_at": _time(image.expires_at),
        "owner_users": image.owner_users,
        "owner_groups": image.owner_groups,
        "kind": "sparse (no filter)" if image.filter is None else "whole machine (has a filter)",
        "filter": image.filter.filter_lines if image.filter is not None else [],
        "triggers": [t.service for t in image.triggers.triggers] if image.triggers else [],
        "build": " ".join(
            filter(None, (image.build_git_url, image.build_branch, image.build_commit_id))
        ),
        "source_image": image.source_image,
        "packages": len(image.packages),
        "tags": image.tags,
        "directories": summary.directories,
        "files": summary.files,
        "symlinks": summary.symlinks,
        "devices_and_fifos": summary.specials,
        "computed_files": summary.computed,
        "data_bytes": summary.data_bytes,
        "objects": summary.objects,
        "object_bytes": summary.object_bytes,
        "usage_estimate_bytes": summary.usage_estimate,
        "inodes_with_xattrs": summary.with_xattrs,
        "notes": summary.notes,
    }


def _rows(tree: FileSystem) -> Iterator[dict[str, Any]]:
    links = Counter(index for _, index in tree.walk())
    for path, index in tree.walk():
        inode = tree.inode(index)
        mtime = inode.mtime_ns
        yield {
            "mode": stat.filemode(inode.mode),
            "links": links[index],
            "uid": inode.uid,
            "gid": inode.gid,
            "size": inode.size,
            "mtime": "absent" if mtime is None else str(Time.from_nanoseconds(mtime)),
            "path": path.decode(errors="backslashreplace"),
            "content": _content(inode),
            "xattrs": sorted(key.decode(errors="backslashreplace") for key in inode.xattrs),
        }


def _content(inode: Inode) -> str:
    target = inode.target.decode(errors="backslashreplace")
    if inode.flags & COMPUTED:
        return f"<- {target}"
    if target:
        return f"-> {target}"
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        import os

        return f"{os.major(inode.rdev)}:{os.minor(inode.rdev)}"
    return inode.hash.hex()


def _time(moment: Time) -> str:
    return "" if moment.is_zero() else str(moment)
