"""NVML: the energy and power of NVIDIA GPUs, found by UUID. The only file that imports ``pynvml``.

Called by ``workers.power.choose``, ``workers.ray_worker`` and ``jouleway doctor``. It must never know an engine, a
window or a request.

What a board can do is probed once, from best to worst: its energy counter, else its power. Fields are asked with the
GPU's scope first; on Grace boards only the whole module's may exist, and that is said and graded down.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType

from workers.errors import MeterUnavailable, WorkerError
from workers.power.device_meter import DeviceLost, DeviceMeter

SCOPE_GPU = 0
SCOPE_MODULE = 1
MAX_XIDS = 16
"""Remembered per meter; older ones are in the kernel's log."""

XID_WORDS = {
    13: "graphics engine exception",
    31: "memory page fault",
    43: "a process was stopped",
    48: "double-bit ECC error",
    63: "row remapping recorded",
    64: "row remapping failed",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "high single-bit ECC rate",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP timeout",
    120: "GSP error",
}
"""From NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors)."""

THROTTLE_WORDS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons that slow a GPU against its will (nvml.h); idle and chosen clocks are left out."""

EnergySource = Callable[[], int]
PowerSource = Callable[[], int]


class NvmlLibrary:
    """``pynvml``, loaded and initialised, its errors translated. ``close`` it once."""

    def __init__(self, *, version_of: Callable[[str], str | None] | None = None) -> None:
        """Raises: MeterUnavailable without driver, library or package, or where another package took its name."""
        problem = wrong_distribution(version_of or _installed_version)
        if problem:
            raise MeterUnavailable(problem)
        try:
            import pynvml
        except ImportError as error:
            raise MeterUnavailable(f"pynvml cannot be imported: {error}") from error
        self.api: ModuleType = pynvml
        try:
            self.api.nvmlInit()
        except self.api.NVMLError as error:
            raise MeterUnavailable(f"NVML cannot be used: {error}; remedy: nvidia-smi must work here") from error
        self.error = self.api.NVMLError
        self._lost_codes = {
            self.api.NVML_ERROR_GPU_IS_LOST,
            self.api.NVML_ERROR_RESET_REQUIRED,
            self.api.NVML_ERROR_GPU_NOT_FOUND,
        }

    def is_lost(self, error: Exception) -> bool:
        """Whether the error says that the device is gone, and not merely that it cannot do something."""
        return getattr(error, "value", None) in self._lost_codes

    def uuids(self) -> tuple[str, ...]:
        """Of every GPU the driver sees, in PCI order."""
        count = self.api.nvmlDeviceGetCount()
        return tuple(self.api.nvmlDeviceGetUUID(self.api.nvmlDeviceGetHandleByIndex(i)) for i in range(count))

    def close(self) -> None:
        try:
            self.api.nvmlShutdown()
        except self.error:
            return  # the driver is gone: there is nothing left to release


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def wrong_distribution(version_of: Callable[[str], str | None]) -> str:
    """What is wrong with the package that provides ``pynvml``; empty if it is NVIDIA's.

    The unofficial ``pynvml`` before 12 carries old bindings as a package of the same name, which shadows the module of
    ``nvidia-ml-py``; from 12 on it depends on ``nvidia-ml-py`` and shadows nothing.
    """
    unofficial = version_of("pynvml")
    if unofficial is not None and int(unofficial.split(".")[0]) < 12:
        return (
            f"the package pynvml {unofficial} shadows NVIDIA's nvidia-ml-py; "
            "remedy: pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
        )
    if version_of("nvidia-ml-py") is None:
        return "nvidia-ml-py is not installed; remedy: pip install nvidia-ml-py"
    return ""


class NvmlDevice:
    """One GPU. Its sources are chosen once; ``notes`` say what was not to be had."""

    def __init__(self, library: NvmlLibrary, uuid: str) -> None:
        """Raises: MeterUnavailable for an unknown UUID, or a GPU that shows neither energy nor power."""
        self._library = library
        self._api = library.api
        self.uuid = uuid
        self.notes: list[str] = []
        self.is_shared = False
        self._is_unsure = False
        self._events: object | None = None
        self._xids: deque[str] = deque(maxlen=MAX_XIDS)
        self._handle = self._find()
        self._check_mig()
        self._energy = self._choose(self._energy_sources(), "energy counter")
        self._power = self._choose(self._power_sources(), "power")
        self.has_counter = self._energy is not None
        if self._energy is None and self._power is None:
            raise MeterUnavailable(f"{uuid} shows neither energy nor power")
        if not self.has_counter:
            self.notes.append(f"no_energy_counter: {uuid}: its power is integrated")
        self._events = self._watch_xids()

    # -- what DeviceMeter asks

    def counter_mj(self) -> int:
        assert self._energy is not None
        return self._ask(self._energy)

    def power_watts(self) -> float | None:
        if self._power is None:
            return None
        try:
            return self._ask(self._power) / 1000
        except DeviceLost:
            raise
        except MeterUnavailable:
            return None

    def complaints(self) -> tuple[str, ...]:
        """XIDs since the start, uncorrected ECC errors, reasons for throttling."""
        self._collect_xids()
        words = list(self._xids)
        api, handle = self._api, self._handle
        try:
            errors = api.nvmlDeviceGetTotalEccErrors(
                handle, api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, api.NVML_VOLATILE_ECC
            )
            if errors:
                words.append(f"ecc: {errors} uncorrected errors on {self.uuid}")
        except self._library.error:
            pass  # most boards without ECC say NOT_SUPPORTED
        try:
            reasons = api.nvmlDeviceGetCurrentClocksEventReasons(handle)
            words += [f"throttled: {word} on {self.uuid}" for bit, word in THROTTLE_WORDS.items() if reasons & bit]
        except self._library.error:
            pass  # older drivers have another name for it; it is advice, not energy
        return tuple(words)

    def close(self) -> None:
        if self._events is not None:
            with contextlib.suppress(self._library.error):  # the device may be gone, and its events with it
                self._api.nvmlEventSetFree(self._events)
            self._events = None

    # -- finding and probing

    def _find(self) -> object:
        try:
            return self._api.nvmlDeviceGetHandleByUUID(self.uuid)
        except self._library.error as error:
            raise MeterUnavailable(f"no GPU {self.uuid} here: {error}") from error

    def _check_mig(self) -> None:
        """An instance has no meter of its own: the whole GPU's is read, and shared."""
        api = self._api
        try:
            if self.uuid.startswith("MIG-"):
                self._handle = api.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._handle)
                is_mig = True
            else:
                is_mig = api.nvmlDeviceGetMigMode(self._handle)[0] == 1
        except self._library.error:
            return  # boards without MIG say NOT_SUPPORTED
        if is_mig:
            self.is_shared = True
            self.notes.append(f"mig: the meter of {self.uuid} is the whole GPU's, other instances included")

    def _energy_sources(self) -> list[tuple[str, EnergySource]]:
        api = self._api
        return [
            ("counter", lambda: int(api.nvmlDeviceGetTotalEnergyConsumption(self._handle))),
            ("field 83", lambda: self._field(api.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, SCOPE_GPU)),
            ("field 191", lambda: self._field(api.NVML_FI_DEV_ENERGY, SCOPE_GPU)),
            ("field 191 of the module", lambda: self._field(api.NVML_FI_DEV_ENERGY, SCOPE_MODULE)),
        ]

    def _power_sources(self) -> list[tuple[str, PowerSource]]:
        api = self._api
        return [
            ("field 186", lambda: self._field(api.NVML_FI_DEV_POWER_INSTANT, SCOPE_GPU)),
            ("field 185", lambda: self._field(api.NVML_FI_DEV_POWER_AVERAGE, SCOPE_GPU)),
            ("power usage", lambda: int(api.nvmlDeviceGetPowerUsage(self._handle))),
            ("field 186 of the module", lambda: self._field(api.NVML_FI_DEV_POWER_INSTANT, SCOPE_MODULE)),
        ]

    def _choose(self, sources: Sequence[tuple[str, Callable[[], int]]], what: str) -> Callable[[], int] | None:
        """The first source that answers. A 0 is an answer: whether it moves is watched by the meter."""
        for name, source in sources:
            try:
                source()
            except self._library.error as error:
                if self._library.is_lost(error):
                    raise DeviceLost(f"{self.uuid} is lost: {error}") from error
                continue
            if name.endswith("of the module"):
                self.is_shared = True
                self.notes.append(f"scope: module: the {what} of {self.uuid} includes its CPU and memory")
            return source
        return None

    def _field(self, field_id: int, scope: int) -> int:
        """A field's value; its own return code must be asked, too."""
        value = self._api.nvmlDeviceGetFieldValues(self._handle, [(field_id, scope)])[0]
        if value.nvmlReturn != self._api.NVML_SUCCESS:
            raise self._library.error(value.nvmlReturn)
        kind = value.valueType
        if kind == self._api.NVML_VALUE_TYPE_UNSIGNED_INT:
            return int(value.value.uiVal)
        if kind == self._api.NVML_VALUE_TYPE_DOUBLE:
            return int(value.value.dVal)
        return int(value.value.ullVal)

    def _ask(self, source: Callable[[], int]) -> int:
        """Raises: DeviceLost, MeterUnavailable. After a failure the GPU is looked up again: it may be back."""
        try:
            if self._is_unsure:
                self._handle = self._api.nvmlDeviceGetHandleByUUID(self.uuid)
            value = source()
        except self._library.error as error:
            self._is_unsure = True
            if self._library.is_lost(error):
                self._collect_xids()
                raise DeviceLost(f"{self.uuid} is lost: {error}") from error
            raise MeterUnavailable(f"{self.uuid} cannot be read: {error}") from error
        self._is_unsure = False
        return value

    # -- XID events

    def _watch_xids(self) -> object | None:
        api = self._api
        try:
            events: object = api.nvmlEventSetCreate()
        except self._library.error:
            self.notes.append(f"no_xid_events: {self.uuid}")
            return None
        try:
            api.nvmlDeviceRegisterEvents(self._handle, api.nvmlEventTypeXidCriticalError, events)
        except self._library.error:
            self.notes.append(f"no_xid_events: {self.uuid}")
            api.nvmlEventSetFree(events)
            return None
        return events

    def _collect_xids(self) -> None:
        if self._events is None:
            return
        for _ in range(MAX_XIDS):
            try:
                event = self._api.nvmlEventSetWait(self._events, 0)
            except self._library.error:
                return  # TIMEOUT: nothing happened; anything else: the device is gone, which the reader says
            xid = int(event.eventData)
            self._xids.append(f"xid {xid}: {XID_WORDS.get(xid, 'see the XID catalogue')} on {self.uuid}")


def uuids_of_visible_devices(visible: str) -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by UUID and in its order: what no restart or container reorders.

    ``visible`` holds indices in PCI order, as Ray assigns them, or UUIDs (CUDA takes any unique beginning of one), or
    UUIDs of MIG instances, which are passed on. Raises: MeterUnavailable without NVML; WorkerError, with the entry and
    its remedy, where one names no GPU, several, or one twice.
    """
    entries = [entry.strip() for entry in visible.split(",") if entry.strip()]
    if not entries:
        raise WorkerError(
            "no GPU is visible: CUDA_VISIBLE_DEVICES is empty; remedy: run the worker on a node where Ray counts GPUs "
            "(`ray status`)"
        )
    library = NvmlLibrary()
    try:
        known = library.uuids()
    except library.error as error:
        raise MeterUnavailable(f"GPUs cannot be listed: {error}; remedy: nvidia-smi must work here") from error
    finally:
        library.close()
    uuids = tuple(_uuid_of(entry, known) for entry in entries)
    if len(set(uuids)) < len(uuids):
        raise WorkerError(f"CUDA_VISIBLE_DEVICES {visible!r} names a GPU twice; remedy: name each once")
    return uuids


def names_of(uuids: Sequence[str]) -> tuple[str, ...]:
    """What the driver calls these GPUs. Raises: MeterUnavailable without NVML, or where it does not know one."""
    library = NvmlLibrary()
    try:
        api = library.api
        return tuple(api.nvmlDeviceGetName(api.nvmlDeviceGetHandleByUUID(uuid)) for uuid in uuids)
    except library.error as error:
        raise MeterUnavailable(f"GPUs cannot be named: {error}; remedy: nvidia-smi must work here") from error
    finally:
        library.close()


def _uuid_of(entry: str, known: Sequence[str]) -> str:
    if entry.startswith("MIG-"):
        return entry
    if entry.isdecimal() and int(entry) < len(known):
        return known[int(entry)]
    found = [uuid for uuid in known if entry.startswith("GPU-") and uuid.lower().startswith(entry.lower())]
    if len(found) != 1:
        raise WorkerError(
            f"CUDA_VISIBLE_DEVICES entry {entry!r} names {len(found)} of the {len(known)} GPUs here; remedy: an index "
            "in PCI order or a whole UUID, as nvidia-smi -L prints it"
        )
    return found[0]


def open_nvml(
    gpu_uuids: tuple[str, ...],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    samples_itself: bool = True,
    version_of: Callable[[str], str | None] | None = None,
) -> DeviceMeter:
    """The meter of exactly these GPUs; without UUIDs, of the machine's only GPU.

    Raises: MeterUnavailable, with the part that is missing and its remedy.
    """
    library = NvmlLibrary(version_of=version_of)
    try:
        uuids = gpu_uuids
        if not uuids:
            uuids = library.uuids()
            if len(uuids) != 1:
                raise MeterUnavailable(
                    f"{len(uuids)} GPUs are here, and nobody said which are the engine's: give the worker gpus "
                    "(`jouleway bench`: --gpu UUID)"
                )
        devices = tuple(NvmlDevice(library, uuid) for uuid in uuids)
        return DeviceMeter(
            devices,
            vendor="nvml",
            notes=tuple(note for device in devices for note in device.notes),
            release=library.close,
            clock=clock,
            sleep=sleep,
            samples_itself=samples_itself,
        )
    except MeterUnavailable:
        library.close()
        raise
