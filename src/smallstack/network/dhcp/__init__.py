"""DHCP for guests: ``packet`` (bytes), ``leases`` (decisions), ``frame``, ``server`` (sockets)."""
