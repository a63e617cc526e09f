"""Types of the glue over csrc/object_files.h."""

def write_objects(
    directory: int, data: bytes | memoryview, objects: list[tuple[bytes, int, int]]
) -> list[tuple[bytes, int]]: ...
