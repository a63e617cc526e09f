"""What a client loads: its start is part of every create."""

import subprocess
import sys

HEAVY = {
    "aiohttp",
    "click",
    "cryptography",
    "matplotlib",
    "prometheus_client",
    "pyroute2",
    "rich",
    "uvloop",
    "yaml",
    "zstandard",
}


def loaded_by(*modules: str) -> set[str]:
    """What is loaded in a fresh interpreter that imports these modules."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return set(done.stdout.split())


def test_a_create_loads_only_the_messages_of_a_create() -> None:
    loaded = loaded_by("smallstack.cli.vm.create_vm")
    messages = {name for name in loaded if name.startswith("smallstack.proto.hypervisor.")}
    assert messages == {f"smallstack.proto.hypervisor.{part}" for part in ("base", "create")}
    assert not {"dataclasses", "json", "shutil"} & loaded


def test_a_client_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        *(
            f"smallstack.client.{service}"
            for service in ("hypervisor", "imageserver", "objectserver")
        )
    )
    assert not HEAVY & {name.partition(".")[0] for name in loaded}
    ours = {name.split(".")[1] for name in loaded if name.startswith("smallstack.")}
    assert ours == {"client", "identity", "proto", "srpc", "telemetry"}
    assert "smallstack.srpc.server" not in loaded
    assert "smallstack.srpc.json_coder" not in loaded
    assert "smallstack.proto.methods" not in loaded
