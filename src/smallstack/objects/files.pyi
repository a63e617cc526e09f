"""Types of the glue over csrc/object_files.h."""

def write_objects(
    directory: int, flat: bool, data: bytes | memoryview, objects: list[tuple[bytes, int, int]]
) -> list[tuple[bytes, int]]: ...
