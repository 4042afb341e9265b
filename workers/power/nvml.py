"""placeholder"""

from workers.errors import MeterUnavailable
from workers.windows import PowerMeter


def open_nvml(gpu_uuids: tuple[str, ...]) -> PowerMeter:
    raise MeterUnavailable("not built yet")
