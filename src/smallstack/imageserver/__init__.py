"""The image server: the services ImageServer and ObjectServer over one catalogue and one store.

``service`` and ``objects`` are what is called; ``references`` knows which objects may not go;
``rights`` decides who may change an image; ``daemon`` runs it all on one port.
"""
