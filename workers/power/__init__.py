"""One file a meter; one face: cumulative millijoules and a quality grade (``workers.windows.PowerMeter``)."""
