"""What travels: typed messages and records, one module per service. Pure data, no encoding."""
