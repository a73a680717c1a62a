"""What `projects/benchmark.py` measures with: turns, scratch stores, endurance, tables."""
