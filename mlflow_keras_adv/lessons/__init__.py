"""What the scripts of `projects/` are made of: a technique, its claims, its command line."""
