"""What happened and how long it took: errors for the reader, timelines, metrics, logging."""
