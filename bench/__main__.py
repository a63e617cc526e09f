"""``./dev bench SCENARIO``: create, unpack, boot, diff, rpc, compare."""

import argparse
import sys
from pathlib import Path

from smallstack.telemetry.errors import SmallStackError, describe


def main() -> int:
    """Run the benchmark that the command line names; what stops it is one line. The exit status."""
    try:
        return _run()
    except (SmallStackError, OSError) as error:
        print(f"bench: {' '.join(describe(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


def _run() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    create = commands.add_parser("create", help="the appliance scenario against its floor")
    create.add_argument("-n", type=int, default=20, help="creates that count (default 20)")
    create.add_argument("--warm-up", type=int, default=3, help="creates before (default 3)")
    create.add_argument("--json", type=Path, help="all samples and the host's facts")
    create.add_argument("--picture", type=Path, default=Path("build/bench-create.png"))
    create.add_argument("--no-debian", action="store_true", help="the appliance scenario alone")

    unpack = commands.add_parser("unpack", help="the ext4 writer beside mke2fs -d")
    unpack.add_argument("--json", type=Path, help="all samples and the host's facts")
    unpack.add_argument("-n", type=int, default=5, help="runs of each (default 5)")

    boot = commands.add_parser("boot", help="root and boot loader beside grub-install")
    boot.add_argument("--json", type=Path, help="all samples and the host's facts")
    boot.add_argument("-n", type=int, default=3, help="runs of each (default 3)")
    boot.add_argument("--picture", type=Path, default=Path("build/bench-boot.png"))

    cache = commands.add_parser("cache", help="objects into the cache beside sha512sum and cp")
    cache.add_argument("--json", type=Path, help="all samples and the host's facts")
    cache.add_argument("-n", type=int, default=3, help="runs of each (default 3)")
    cache.add_argument("--picture", type=Path, default=Path("build/bench-cache.png"))

    diff = commands.add_parser("diff", help="what differs between two disks, beside qemu-img map")
    diff.add_argument("--json", type=Path, help="all samples and the host's facts")
    diff.add_argument("-n", type=int, default=7, help="runs of each (default 7)")
    diff.add_argument("--picture", type=Path, default=Path("build/bench-diff.png"))

    rpc = commands.add_parser("rpc", help="calls per second beside a bare TLS echo; idle peers")
    rpc.add_argument("--json", type=Path, help="all samples and the host's facts")
    rpc.add_argument("-n", type=int, default=3, help="runs of each load (default 3)")
    rpc.add_argument("--seconds", type=float, default=3.0, help="of one run (default 3)")
    rpc.add_argument("--creates", type=int, default=12, help="creates each way (default 12)")
    rpc.add_argument("--idle", type=int, default=10_000, help="idle connections (default 10000)")
    rpc.add_argument("--only", default="", help="only loads with this in their name, nothing else")

    compare = commands.add_parser("compare", help="did a ratio get worse?")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument(
        "--margin",
        type=float,
        default=0.10,
        help="how much worse is too much (default 0.10 = 10 %%)",
    )

    options = parser.parse_args()
    if options.command == "create":
        from bench.create import run

        return run(
            options.n,
            options.warm_up,
            options.json,
            options.picture,
            debian=not options.no_debian,
        )
    if options.command == "unpack":
        from bench import unpack as unpacking

        unpacking.run(options)
        return 0
    if options.command == "boot":
        from bench import boot as booting

        booting.run(options)
        return 0
    if options.command == "cache":
        from bench import cache as caching

        caching.run(options)
        return 0
    if options.command == "diff":
        from bench import diff as differing

        differing.run(options)
        return 0
    if options.command == "rpc":
        from bench import rpc as calling

        return calling.run(
            options.seconds,
            options.n,
            options.creates,
            options.idle,
            options.json,
            options.only,
        )
    from bench.compare import compare as compare_files

    return compare_files(options.before, options.after, options.margin)


if __name__ == "__main__":
    sys.exit(main())
