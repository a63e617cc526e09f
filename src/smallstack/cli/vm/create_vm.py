"""``vm-control create-vm``: create a VM, wait for its DHCP, optionally for a port."""

import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from smallstack.cli.connect import connector
from smallstack.cli.options import Bytes, Duration, Mebibytes, Target, fail, run
from smallstack.cli.tags import parse_tags
from smallstack.cli.transcript import Transcript
from smallstack.cli.vm.boot import boot_options
from smallstack.control.create import After, Created, create
from smallstack.proto.enums import FirmwareType, MachineType
from smallstack.proto.hypervisor.create import (
    IMAGE_FORMATS,
    MAX_USER_DATA,
    CreateVmRequest,
    OwnCreateVmRequest,
)
from smallstack.proto.vm import Address, VmInfo, Volume

MAX_OVERLAY = 32 << 20
"""Bytes of all overlay files: they travel in one message."""


@click.command("create-vm")
@click.option("--hostname", default="", help="host name; the Name tag when not given")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="repeatable")
@click.option("--image-name", default="", help="image, or directory: then its latest image")
@click.option(
    "--image-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="disk image to send: raw, qcow2, VMDK or VDI, also compressed (gzip, xz, bzip2, zstd)",
)
@click.option(
    "--image-url",
    default="",
    help="disk image for the Hypervisor to fetch by HTTP(S); #sha256=HEX behind it is checked",
)
@click.option(
    "--image-format",
    type=click.Choice(IMAGE_FORMATS[1:]),
    default="auto",
    show_default=True,
    help="what the disk image is; auto: see its content",
)
@click.option("--root-size", type=Bytes(), default=0, help="least size of a root from a disk image")
@click.option("--memory", type=Mebibytes(), default="1G", show_default=True)
@click.option("--milli-cpus", type=click.IntRange(1, 4_096_000), default=250, show_default=True)
@click.option(
    "--virtual-cpus",
    type=click.IntRange(0, 4096),
    default=0,
    help="at least; 0: from --milli-cpus",
)
@click.option("--subnet-id", default="", help="needed when the Hypervisor has several")
@click.option(
    "--image-timeout",
    type=Duration(),
    default="1m",
    show_default=True,
    help="how long to wait for an image that is not there yet",
)
@click.option("--min-free-bytes", type=Bytes(), default="256M", show_default=True)
@click.option(
    "--roundup-power",
    type=click.IntRange(0, 46),
    default=24,
    show_default=True,
    help="the root's size is a multiple of 2 to this power",
)
@click.option(
    "--user-data",
    "user_data_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="file handed to the guest as /latest/user-data",
)
@click.option(
    "--overlay-directory",
    "overlay",
    type=click.Path(path_type=Path, file_okay=False),
    help="its files are laid over the root",
)
@click.option("--extra-kernel-options", default="", help="appended to the kernel's arguments")
@click.option("--owner-user", "owner_users", multiple=True, help="further owner; repeatable")
@click.option("--owner-group", "owner_groups", multiple=True, help="repeatable")
@click.option("--destroy-protection", is_flag=True, help="destroy-vm refuses while it runs")
@click.option("--boot-loader", is_flag=True, help="boot through the image's boot loader")
@click.option(
    "--firmware-type",
    type=click.Choice(["default", "bios", "uefi"]),
    default="default",
    help="what starts the boot loader",
)
@click.option("--machine-type", type=click.Choice(["auto", "q35"]), default="auto")
@click.option("--do-not-start", is_flag=True, help="leave it stopped")
@boot_options
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="what standard output carries: the address, or all of it",
)
@click.pass_obj
def command(target: Target, /, **options: Any) -> None:
    """Create a VM. Its address alone goes to standard output, what happens to standard error."""
    request = make_request(options)
    user_data = read_user_data(options["user_data_file"])
    request.user_data_size = len(user_data)
    after = After(options["probe_port"], options["probe_timeout"], options["trace_metadata"])
    transcript = Transcript(sys.stderr)
    wall, cpu = time.time(), time.process_time()

    async def work() -> Created:
        async with transcript.running():
            return await create(
                connector(target),
                target.address,
                request,
                user_data,
                after,
                transcript.line,
                options["image_file"],
            )

    created = run(work())
    if options["output"] == "json":
        print(msgspec.json.encode(as_record(created, wall, cpu)).decode())
    else:
        print(created.ip)


def make_request(options: dict[str, Any]) -> CreateVmRequest:
    """The request that the command line describes; exits with one line when it describes none."""
    tags = {key: values[-1] for key, values in parse_tags(options["tags"]).items()}
    hostname = options["hostname"] or tags.get("Name", "")
    if not hostname:
        raise click.UsageError("a VM needs a name: --hostname NAME or --tag Name=NAME")
    tags.setdefault("Name", hostname)
    disk = bool(options["image_file"] or options["image_url"])
    named = [name for name in ("image_name", "image_file", "image_url") if options[name]]
    if not named:
        raise click.UsageError(
            "no image: --image-name NAME (see `imagetool list`), --image-file FILE or "
            "--image-url URL"
        )
    if len(named) > 1:
        raise click.UsageError(f"several images: leave --{named[1].replace('_', '-')} out")
    if disk and options["overlay"]:
        raise click.UsageError("an overlay goes only over --image-name: leave it out")
    info = VmInfo(
        address=Address(),
        destroy_protection=options["destroy_protection"],
        extra_kernel_options=options["extra_kernel_options"],
        firmware_type=FirmwareType[options["firmware_type"].upper()],
        hostname=hostname,
        image_name=options["image_name"],
        image_url=options["image_url"],
        machine_type=MachineType[options["machine_type"].upper()],
        memory_in_mib=options["memory"],
        milli_cpus=options["milli_cpus"],
        owner_groups=list(options["owner_groups"]),
        owner_users=list(options["owner_users"]),
        subnet_id=options["subnet_id"],
        tags=tags,
        virtual_cpus=options["virtual_cpus"],
        volumes=[Volume(size=options["root_size"])] if disk and options["root_size"] else [],
    )
    directories, files = read_overlay(options["overlay"])
    fields: dict[str, Any] = {
        "dhcp_timeout": options["dhcp_timeout"],
        "do_not_start": options["do_not_start"],
        "image_timeout": options["image_timeout"],
        "minimum_free_bytes": options["min_free_bytes"],
        "overlay_directories": directories,
        "overlay_files": files,
        "roundup_power": options["roundup_power"],
        "skip_bootloader": not options["boot_loader"],
        "vm_info": info,
    }
    if disk:
        return OwnCreateVmRequest(image_format=options["image_format"], **fields)
    return CreateVmRequest(**fields)


def read_user_data(path: Path | None) -> bytes:
    """The bytes of the user data file; none when there is no file."""
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_USER_DATA + 1)
    except OSError as error:
        fail(f"cannot read user data {path}: {error.strerror}")
    if len(data) > MAX_USER_DATA:
        fail(f"user data {path} has over {MAX_USER_DATA >> 20} MiB, which is the most")
    return data


def read_overlay(directory: Path | None) -> tuple[list[str], dict[str, bytes]]:
    """Directories and files below ``directory``, as absolute paths in the guest."""
    if directory is None:
        return [], {}
    directories: list[str] = []
    files: dict[str, bytes] = {}
    left = MAX_OVERLAY
    try:
        for path in sorted(directory.rglob("*")):
            name = "/" + str(path.relative_to(directory))
            if path.is_dir():
                directories.append(name)
            elif path.is_file():
                with path.open("rb") as file:
                    files[name] = file.read(left + 1)
                left -= len(files[name])
                if left < 0:
                    fail(f"the overlay {directory} has over {MAX_OVERLAY >> 20} MiB: make an image")
            else:
                fail(f"the overlay's {path} is neither a directory nor a regular file")
    except OSError as error:
        fail(f"cannot read the overlay {error.filename}: {error.strerror}")
    return directories, files


def as_record(created: Created, wall: float, cpu: float) -> dict[str, Any]:
    """What ``--format json`` prints. Times are seconds, phases nanoseconds of one clock."""
    return {
        "ip_address": created.ip,
        "dhcp_timed_out": created.dhcp_timed_out,
        "seconds_to_ack": created.seconds_to_ack,
        "seconds_to_port": created.seconds_to_port,
        "connect_started_ns": created.connect_started_ns,
        "acknowledged_ns": created.acknowledged_ns,
        "messages": [{"seconds": when, "text": text} for when, text in created.messages],
        "timeline": [
            {"name": phase.name, "start_ns": phase.start_ns, "end_ns": phase.end_ns}
            for phase in created.timeline
        ],
        "started": wall,
        "cpu_seconds": time.process_time() - cpu,
    }
