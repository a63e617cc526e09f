"""A tree of inodes over objects: what images are made of, how they are made, listed, laid out.

``build`` makes a tree from a directory, ``tar`` from an archive; both hand every file's content to
a `Sink` as they go. ``unpack`` is the way back. ``filter`` and ``triggers`` read the files that an
image carries. ``names`` says what an image may be called. ``catalogue`` keeps images on disk.
"""
