"""Which URLs an image may have, and which files may be an image."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import IPRoute  # type: ignore[import-untyped]

from smallstack.hypervisor.image_url import ImageUrl, ImageUrlError, UrlPolicy, parse_image_url
from tests.network.world import private_namespace

IFA_F_NODAD = 2
"""if_addr.h: the address is there at once, nobody is asked whether they have it."""
HEX = "ab" * 32


def refusal(text: str, policy: UrlPolicy | None = None) -> str:
    with pytest.raises(ImageUrlError) as caught:
        url = parse_image_url(text)
        (policy or UrlPolicy()).check(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_ones() -> None:
    url = parse_image_url(f"https://host.example:8443/a%20b?x=1#sha256={HEX.upper()}")
    assert url == ImageUrl("https://host.example:8443/a%20b?x=1", {"sha256": HEX})
    assert (url.scheme, url.host) == ("https", "host.example")
    assert parse_image_url("http://[::1]/").host == "::1"
    assert parse_image_url("file:///srv/images/x").scheme == "file"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "write http://HOST"),
        ("/etc/passwd", "write http://HOST"),
        ("ftp://host/x", "write http://HOST"),
        ("gopher://host/x", "write http://HOST"),
        ("http:///x", "it names no host"),
        ("http://host:99999/x", "Port out of range"),
        ("http://host/a b", "write http://HOST"),
        ("http://host/\r\nX: y", "write http://HOST"),
        ("http://höst/", "write http://HOST"),
        ("http://user:secret@host/x", "leave user and password out"),
        ("http://host/x#sha256=ab", "behind # stands sha256="),
        ("http://host/x#md5=" + HEX, "behind # stands sha256="),
        ("http://host/x#" + "a" * 5000, "longer than 4096 characters"),
        ("http://[::1/x", "Invalid IPv6 URL"),
        ("file://host/x", "write file:///PATH"),
        ("file:///x", "file: is off, see --local-images-directory"),
        ("http://169.254.169.254/latest/user-data", "a link-local one"),
        ("http://[fe80::1]/", "a link-local one"),
        ("http://168.63.129.16/", "a link-local one"),
        ("http://100.100.100.200/", "a link-local one"),
        ("http://192.0.0.192/", "a link-local one"),
        ("http://[::ffff:169.254.169.254]/", "a link-local one"),
    ],
)
def test_bad_ones(text: str, told: str) -> None:
    said = refusal(text)
    assert told in said
    assert "secret" not in said


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    try:
        parse_image_url(text)
    except ImageUrlError as error:
        assert "\n" not in str(error)


def test_hosts() -> None:
    policy = UrlPolicy(hosts=("images.example", "*.lan.example", "169.254.7.7"))
    for host in ("images.example", "IMAGES.example.", "a.lan.example", "169.254.7.7"):
        policy.check(parse_image_url(f"http://{host}/x"))
    for host in ("lan.example", "evil.example", "images.example.evil", "127.0.0.1"):
        assert "is not allowed, see --image-url-hosts" in refusal(f"http://{host}/x", policy)
    assert "is not allowed" in refusal("https://images.example/", UrlPolicy(hosts=("none",)))
    assert not UrlPolicy().admits("name.example", "169.254.169.254")
    assert not UrlPolicy().admits("name.example", "fe80::1%eth0")
    for address in ("127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "fd00:ec2::254"):
        assert not UrlPolicy().admits("name.example", address)
        assert UrlPolicy(hosts=("*", "name.example")).admits("name.example", address)
    assert UrlPolicy().admits("name.example", "198.51.100.7")


@pytest.mark.root
def test_what_is_this_machine() -> None:
    policy = UrlPolicy()
    with private_namespace(), IPRoute() as netlink:
        netlink.link("add", ifname="here", kind="bridge")
        (here,) = netlink.link_lookup(ifname="here")
        netlink.link("set", index=here, state="up")
        for mine, other in (("198.51.100.7", "198.51.100.8"), ("2001:db8::7", "2001:db8::8")):
            assert policy.admits("name.example", mine)
            netlink.addr("add", index=here, address=mine, prefixlen=28, flags=IFA_F_NODAD)
            assert not policy.admits("name.example", mine)
            assert policy.admits("name.example", other)
        assert not policy.admits("name.example", "::ffff:198.51.100.7")
        netlink.addr("delete", index=here, address="198.51.100.7", prefixlen=28)
        assert policy.admits("name.example", "198.51.100.7")


def test_redirections() -> None:
    policy = UrlPolicy(local_directory=Path("/srv"))
    here = parse_image_url("https://host/a/b")
    assert policy.redirected(here, "../c").url == "https://host/c"
    assert policy.redirected(here, "//other/x#y").url == "https://other/x"
    for there, told in (
        ("http://host/x", "it redirects to http:"),
        ("file:///srv/x", "it redirects to file:"),
        ("https://169.254.169.254/", "link-local"),
        ("ftp://x/y", "redirected: .*write http"),
    ):
        with pytest.raises(ImageUrlError, match=told):
            policy.redirected(here, there)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_local_files(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    (images / "sub" / "a b").write_bytes(b"disk")
    (tmp_path / "secret").write_bytes(b"secret")
    (images / "inside").symlink_to("sub")
    (images / "outside").symlink_to(tmp_path / "secret")
    (images / "up").symlink_to("..")
    os.mkfifo(images / "fifo")
    policy = UrlPolicy(local_directory=images)
    for name in ("sub/a%20b", "inside/a b".replace(" ", "%20")):
        fd = policy.open_local(parse_image_url(f"file://{images}/{name}"))
        assert os.read(fd, 9) == b"disk"
        os.close(fd)
    for path, told in (
        (f"{images}/outside", "it leads out of"),
        (f"{images}/up/secret", "it leads out of"),
        (f"{images}/../secret", "its path is not clean"),
        (f"{images}/%2e%2e/secret", "its path is not clean"),
        (f"{images}//sub/a%20b", "its path is not clean"),
        (f"{images}/%00", "its path is not clean"),
        (f"{tmp_path}/secret", "it is not below"),
        (f"{images}/none", "No such file"),
        (f"{images}/fifo", "it is no regular file"),
        (f"{images}/sub", "it is no regular file"),
    ):
        before = open_files()
        with pytest.raises(ImageUrlError, match=told):
            policy.open_local(parse_image_url(f"file://{path}"))
        assert open_files() == before
