"""Building blocks of the scripts in `projects/`: technique, claims, training, command line."""
