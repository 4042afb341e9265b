"""The core on a virtual clock with simulated workers."""
