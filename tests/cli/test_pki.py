"""``smallstack pki``: what it prints, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smallstack.cli.smallstack import group as smallstack
from smallstack.identity import certificate
from smallstack.identity.credentials import ClientCredentials, ServerCredentials


def _run(directory: Path, *arguments: str, home: Path | None = None) -> Result:
    environment = {"HOME": str(home)} if home else {}
    return CliRunner().invoke(
        smallstack,
        ["pki", "--directory", str(directory), *arguments],
        env=environment,
        catch_exceptions=False,
    )


def test_from_nothing_to_a_daemon_and_a_user(tmp_path: Path) -> None:
    directory = tmp_path / "pki"
    result = _run(directory, "make-ca")
    assert (result.exit_code, result.stdout) == (0, f"{directory}/ca.pem\n")
    assert _run(directory, "make-ca", "--identity").exit_code == 0
    arguments = ["--host", "hv1", "--host", "198.51.100.1", "--method", "ImageServer.*"]
    result = _run(directory, "issue", "hv1", "--server", "--out", str(tmp_path / "hv1"), *arguments)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/hv1\n")
    server = ServerCredentials.load(tmp_path / "hv1")
    assert server.authorities is not None
    ClientCredentials.load(tmp_path / "hv1")
    result = _run(directory, "issue", "alice", "--group", "dev", "--group", "ops", home=tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/.ssl/alice.cert\n")
    assert certificate.load(tmp_path / ".ssl" / "alice.cert").groups == {"dev", "ops"}
    rows = json.loads(_run(directory, "list", "--format", "json").stdout)
    assert [(row["name"], row["kind"]) for row in rows] == [
        ("SmallStack CA", "authority"),
        ("SmallStack Identity CA", "identity authority"),
        ("alice", "user"),
        ("hv1", "server"),
    ]
    assert (rows[2]["groups"], rows[3]["methods"]) == (["dev", "ops"], ["ImageServer.*"])
    assert rows[2]["left_days"] in {364, 365}
    table = _run(directory, "list").stdout.splitlines()
    assert table[0].split() == ["name", "kind", "groups", "methods", "until", "left_days"]
    assert table[3].split()[:3] == ["alice", "user", "dev,ops"]


@pytest.mark.parametrize("arguments", [["alice"], ["hv", "--server"]])
@pytest.mark.parametrize("left", ["cert", "key"])
def test_a_key_that_is_there_is_not_written_over(
    tmp_path: Path, arguments: list[str], left: str
) -> None:
    """Whoever uses it would be locked out, without a word."""
    directory, out = tmp_path / "pki", tmp_path / "out"
    issue = ["issue", *arguments, "--out", str(out)]
    _run(directory, "make-ca")
    assert _run(directory, *issue).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in out.iterdir():
        if path.name != "ca.pem" and left not in path.name:
            path.unlink()
    result = _run(directory, *issue)
    assert result.exit_code == 1
    assert "exists: renew it with `smallstack pki renew`" in result.stderr
    assert all(path.read_bytes() == before[path.name] for path in out.iterdir())
    assert _run(directory, *issue, "--replace").exit_code == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after if name != "ca.pem")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["issue", "alice"], 1, "make one with `smallstack pki make-ca`"),
        (["issue", "hv1", "--server"], 2, "needs --out"),
        (["issue", "alice", "--host", "x"], 2, "--host is for --server"),
        (["issue", "a/b"], 2, "no slash"),
        (["issue", "a", "--identity", "--method", "*.*"], 2, "--identity authority do not count"),
        (["renew"], 2, "Missing argument 'PLACES...'"),
        (["renew", "/nonexistent"], 2, "'/nonexistent' does not exist"),
        (["renew", "/", "--within", "-1"], 2, "'--within': -1 is not in the range"),
        (["renew-ca"], 1, "make one with `smallstack pki make-ca`"),
        (["issue", "alice", "--days", "99999999"], 2, "'--days': 99999999 is not in the range"),
        (["issue", "alice", "--days", "-1"], 2, "'--days': -1 is not in the range"),
        (["make-ca", "--days", "0"], 2, "'--days': 0 is not in the range"),
        (["list"], 0, "nothing was issued"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    result = _run(tmp_path, *arguments)
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_second_authority_and_a_bad_method(tmp_path: Path) -> None:
    assert _run(tmp_path, "make-ca", "--name", "Ours").exit_code == 0
    again = _run(tmp_path, "make-ca")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "there already: `smallstack pki renew-ca`" in again.stderr
    other = _run(tmp_path, "issue", "ida", "--identity", "--out", str(tmp_path))
    assert other.stderr.endswith("make one with `smallstack pki make-ca --identity`\n")
    result = _run(tmp_path, "issue", "alice", "--method", "StartVm", "--out", str(tmp_path))
    assert "is not Service.Method" in result.stderr
    assert not (tmp_path / "alice.key").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["issue", "hv", "--server", "--host", "bä d"], "host 'bä d' is no address and no ASCII"),
        (["issue", "hv", "--server", "--host", ""], "host '' is no address"),
        (["issue", "x" * 65], "a name has 1 to 64 bytes"),
        (["issue", "ä" * 33], "a name has 1 to 64 bytes"),
        (["issue", ""], "a name has 1 to 64 bytes"),
        (["issue", "\udcff"], "a name has 1 to 64 bytes of UTF-8"),
        (["issue", "alice", "--group", ""], "'' is no group"),
        (["issue", "alice", "--method", "Hypervisor.[a"], "'Hypervisor.[a' is not Service.Method"),
        (["issue", "alice", "--group", "\udcff"], r"'\udcff' is not UTF-8"),
        (["make-ca", "--identity", "--name", "x" * 65], "a name has 1 to 64 bytes"),
    ],
)
def test_what_cannot_be_in_a_certificate_is_told(
    tmp_path: Path, words: list[str], said: str
) -> None:
    assert _run(tmp_path / "pki", "make-ca").exit_code == 0
    out = [] if words[0] == "make-ca" else ["--out", str(tmp_path / "out")]
    result = _run(tmp_path / "pki", *words, *out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "pki" / "identity-ca.key").exists()


def test_a_method_that_nobody_knows_is_told_of(tmp_path: Path) -> None:
    assert _run(tmp_path, "make-ca").exit_code == 0
    methods = ["--method", "Hypervisr.*", "--method", "Hypervisor.Get*"]
    result = _run(tmp_path, "issue", "alice", *methods, "--out", str(tmp_path))
    assert result.exit_code == 0
    assert result.stderr == "no method that is known here matches 'Hypervisr.*'\n"


def test_renewing(tmp_path: Path) -> None:
    directory, home = tmp_path / "pki", tmp_path / "home"
    ssl = home / ".ssl"
    assert _run(directory, "make-ca").exit_code == 0
    assert _run(tmp_path / "other", "make-ca", "--name", "Other").exit_code == 0
    _run(directory, "issue", "alice", "--days", "20", home=home)
    _run(directory, "issue", "bob", "--days", "200", home=home)
    _run(tmp_path / "other", "issue", "eve", home=home)
    names = ("alice", "bob", "eve")
    before = {name: (ssl / f"{name}.cert").read_bytes() for name in names}

    def changed() -> list[str]:
        return [name for name in names if (ssl / f"{name}.cert").read_bytes() != before[name]]

    result = _run(directory, "renew", "--within", "10", str(ssl))
    assert (result.exit_code, result.output, changed()) == (0, "", [])
    result = _run(directory, "renew", "--within", "30", str(ssl))
    (line,) = result.stdout.splitlines()
    assert line.split("\t")[0] == str(ssl / "alice.cert")
    assert (result.stderr, changed()) == ("", ["alice"])
    result = _run(directory, "renew", "--days", "400", "--new-key", str(ssl))
    assert (result.exit_code, changed()) == (0, ["alice", "bob"])
    assert result.stderr == (
        f"certificate {ssl}/eve.cert was not signed by an authority in {directory}\n"
    )
    rows = json.loads(_run(directory, "list", "--format", "json").stdout)
    assert [row["left_days"] for row in rows if row["name"] == "bob"] == [199, 399]
    ClientCredentials.load(ssl)
    for place, said in (
        (ssl / "eve.cert", "was not signed by an authority in"),
        (directory, "no certificate and key in"),
        (ssl / "alice.key", "cannot be renewed"),
    ):
        result = _run(directory, "renew", str(place))
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    result = _run(directory, "renew-ca", "--days", "5000")
    assert (result.exit_code, result.stdout) == (0, f"{directory}/ca.pem\n")
