"""The agent: it runs the VMs of one machine and answers for them over RPC.

::

    daemon     settings, start-up, the end
    service    the RPC methods: rights, filters, texts       ─┐
    create     the steps of a create, each with its undo      ├─► vm       one task per VM
    agent      all VMs, all parts, start-up repairs          ─┘   states   its table
    roots      image ─► brick ─► layer, kernel                    store    what is on disk
    images     the image server, trees kept                       ledger   who has how much
    wiring     bridges, taps, guard, DHCP, metadata               specs    record ─► machine
    host       this machine's memory, processors, space           pages    the status page
    volume_files   whether volumes are what the records say
"""
