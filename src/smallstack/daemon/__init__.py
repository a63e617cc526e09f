"""What every daemon shares: one port by its first bytes, pages, metrics, signals, the watchdog."""
