"""qcow2 images: opening chains, reading, what differs, streams of it, and rewriting.

``chain`` opens a disk by its path with all backing files; ``image`` is the glue over csrc/qcow2.h;
``extents`` says what differs between two disks; ``stream`` and ``apply`` carry that elsewhere;
``rewrite`` flattens and compacts; ``commit`` puts an overlay into its backing file.
"""
