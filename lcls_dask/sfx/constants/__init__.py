"""Constants of detectors: what they are, the files that hold them, and dark runs that they are derived from."""
