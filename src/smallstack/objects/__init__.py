"""Bytes by digest: the store on disk, the bounded cache of a Hypervisor, where they come from.

An object is the content of one or more regular files, named by its SHA-512. Empty objects do not
exist. ``store`` keeps them, ``cache`` keeps as many as fit and fetches the rest, ``index`` is what
the cache remembers between starts, ``source`` is a peer to fetch from.
"""
