"""Benchmarks of thalweg beside its peers and beside a plain C loop that moves the same bytes: `python -m benchmarks`."""
