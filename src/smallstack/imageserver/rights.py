"""Who may change images and directories: those with method powers, owners, and groups.

The texts are upstream's; a peer without any name has no rights but those of an insecure server.
"""

from smallstack.identity.peer import Peer
from smallstack.images.catalogue import Entry, ImageCatalogue
from smallstack.images.errors import DeniedError
from smallstack.images.names import parent
from smallstack.proto.kinds import Time

NO_ACCESS = "no access to image: neither you nor a group of yours own it"
HOUR_NS = 3600 * 10**9
DEFAULT_MAXIMUM_NS = 24 * HOUR_NS
DEFAULT_PRIVILEGED_MAXIMUM_NS = 730 * HOUR_NS


def check_image(peer: Peer, catalogue: ImageCatalogue, name: str, entry: Entry | None) -> None:
    """Raises DeniedError unless the peer may add, delete or prolong this image."""
    if peer.have_method_access:
        return
    if entry is not None and peer.username:
        image = entry.image
        if peer.username in {image.created_by, image.created_for, *image.owner_users}:
            return
        if peer.groups.intersection(image.owner_groups):
            return
    _check_group(peer, catalogue, parent(name), f'no metadata for: "{parent(name)}"')


def check_make_directory(peer: Peer, catalogue: ImageCatalogue, name: str) -> None:
    """Raises DeniedError unless the peer may make this directory in the one above it."""
    if peer.have_method_access:
        return
    metadata = catalogue.metadata(parent(name))
    if metadata is None:
        raise DeniedError(text=f"no metadata for: {parent(name)}")
    if not metadata.owner_group:
        raise DeniedError(text=NO_ACCESS)
    if metadata.owner_group not in peer.groups:
        raise DeniedError(text=f"no membership of {metadata.owner_group} group")


def check_chown(peer: Peer, catalogue: ImageCatalogue, directory: str, group: str) -> None:
    """Raises DeniedError unless the peer may give this directory to a group."""
    if not peer.username:
        raise DeniedError(text="no username: unauthenticated connection")
    if peer.have_method_access:
        return
    above = catalogue.metadata(parent(directory))
    if above is not None and above.owner_group and above.owner_group in peer.groups:
        return
    if group not in peer.groups:
        raise DeniedError(text=f"no membership of {group} group")
    _check_group(peer, catalogue, directory, f'no metadata for: "{directory}"')


def check_expiration(
    peer: Peer,
    expires_at: Time,
    maximum_ns: int = DEFAULT_MAXIMUM_NS,
    privileged_maximum_ns: int = DEFAULT_PRIVILEGED_MAXIMUM_NS,
) -> None:
    """Raises DeniedError when an image may not live until then by this peer's word."""
    if expires_at.is_zero():
        if not peer.have_method_access:
            raise DeniedError(text="not permitted to make image non-expiring")
        return
    left = expires_at.nanoseconds_since_epoch - Time.now().nanoseconds_since_epoch
    if peer.have_method_access:
        if left > privileged_maximum_ns:
            hours = privileged_maximum_ns // HOUR_NS
            raise DeniedError(text=f"maximum expiration time is {hours}h0m0s for you")
    elif left > maximum_ns:
        raise DeniedError(text=f"maximum expiration time is {maximum_ns // HOUR_NS}h0m0s")


def _check_group(peer: Peer, catalogue: ImageCatalogue, directory: str, unknown: str) -> None:
    metadata = catalogue.metadata(directory)
    if metadata is None:
        raise DeniedError(text=unknown)
    if not metadata.owner_group or metadata.owner_group not in peer.groups:
        raise DeniedError(text=NO_ACCESS)
