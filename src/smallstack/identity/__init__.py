"""Who a peer is and what it may do: certificates, the order of decisions, making a CA."""
