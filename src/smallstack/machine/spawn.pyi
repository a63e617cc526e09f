GROUP_STAGE: str
STAGES: tuple[str, ...]

def spawn(
    path: bytes,
    argv: list[bytes],
    envp: list[bytes],
    directory: bytes,
    fds: list[int],
    output_fd: int,
    record_fd: int,
    identity: tuple[int, int, list[int]] | None,
    open_files: int,
    group: tuple[int, bytes | None] | None = None,
) -> tuple[int, int]: ...
