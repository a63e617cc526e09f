"""How it travels: framing and codecs without I/O, connections, the server and the client side."""
