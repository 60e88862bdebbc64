"""Being seen: what happens to a peer as metrics for Prometheus and as a log."""
