"""What a client loads: its start is part of every create."""

import json
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


def test_a_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, json; import smallstack.client.hypervisor;"
        "import smallstack.client.imageserver, smallstack.client.objectserver;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not HEAVY & {name.partition(".")[0] for name in loaded}
    ours = {name.split(".")[1] for name in loaded if name.startswith("smallstack.")}
    assert ours == {"client", "identity", "proto", "srpc", "telemetry"}
    assert "smallstack.srpc.server" not in loaded
    assert "smallstack.srpc.json_coder" not in loaded
    assert "smallstack.proto.methods" not in loaded
