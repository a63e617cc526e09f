"""What a guest sees of the network: bridges and taps, addresses, DHCP, the metadata service.

::

    addresses, subnets ── book (files)          who may have which address
    tap ── bridge ── guard                      a port per VM; tap, MAC and IP have to agree
    dhcp.packet ── dhcp.leases ── dhcp.server   bytes ── decisions ── sockets
    metadata.http ── .routes ── .server         the same, for 169.254.169.254

`network.room` puts them together for the agent.
"""
