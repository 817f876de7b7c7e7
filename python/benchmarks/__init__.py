"""Benchmarks of thalweg beside its peers and a plain C loop that moves the same bytes: `python -m benchmarks`."""
