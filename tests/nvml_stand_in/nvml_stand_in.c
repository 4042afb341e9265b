/* A stand-in for libnvidia-ml.so.1: scripted GPUs for tests of the NVML meter through the real pynvml.
 *
 * Time is virtual and moves only by stand_in_advance_ms(); each GPU draws watts, and its shown counter moves at its
 * refresh tick. stand_in_set() changes one property of one GPU; unknown names return -1, so that a typo fails the test.
 * In a process of its own (LD_LIBRARY_PATH) there are JOULEWAY_STAND_IN_GPUS GPUs from the start (none without it).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15 };
enum { MAX_GPUS = 8, MAX_XIDS = 16, TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };
enum { FIELD_ENERGY_OLD = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186, FIELD_ENERGY = 191 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1 };

typedef struct {
    char uuid[96];
    long long true_mj, shown_mj, watts, refresh_ms;
    long long energy_error;        /* of nvmlDeviceGetTotalEnergyConsumption and field 83 */
    long long field_energy_error;  /* of field 191 with the GPU's scope */
    long long module_error;        /* of fields with the module's scope */
    long long power_error;         /* of every source of power with the GPU's scope */
    long long field_power_error;   /* of fields 185 and 186 only */
    long long lost, stuck, mig, uncorrected, throttle, events_error;
    unsigned long long xids[MAX_XIDS];
    int num_xids;
} Gpu;

typedef struct { void *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } EventData;
typedef union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; } Value;
typedef struct { unsigned field, scope; long long timestamp, latency; int type, result; Value value; } FieldValue;

static Gpu gpus[MAX_GPUS];
static int num_gpus, num_inits, is_driver_absent;
static long long now_ms;
static Gpu *event_sets[MAX_GPUS];
static int num_event_sets;

/* -- the test's side */

void stand_in_clear(int count) {
    memset(gpus, 0, sizeof gpus);
    num_gpus = count;
    num_inits = is_driver_absent = num_event_sets = 0;
    now_ms = 0;
    for (int i = 0; i < count; i++) {
        Gpu *gpu = &gpus[i];
        snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-0000000%d-aaaa-bbbb-cccc-dddddddddddd", i);
        gpu->watts = 300;
        gpu->refresh_ms = 100;
        gpu->true_mj = gpu->shown_mj = 1000000LL * (i + 1);
        gpu->field_energy_error = gpu->module_error = NOT_SUPPORTED;
    }
}

void stand_in_advance_ms(long long ms) {
    for (; ms > 0; ms--) {
        now_ms++;
        for (int i = 0; i < num_gpus; i++) {
            Gpu *gpu = &gpus[i];
            gpu->true_mj += gpu->watts;  /* a watt is a millijoule a millisecond */
            if (now_ms % gpu->refresh_ms == 0 && !gpu->stuck) gpu->shown_mj = gpu->true_mj;
        }
    }
}

void stand_in_driver_absent(int absent) { is_driver_absent = absent; }
long long stand_in_true_mj(int index) { return gpus[index].true_mj; }
int stand_in_num_inits(void) { return num_inits; }
int stand_in_num_event_sets(void) { return num_event_sets; }

int stand_in_set(int index, const char *name, long long value) {
    Gpu *gpu = &gpus[index];
    if (!strcmp(name, "watts")) gpu->watts = value;
    else if (!strcmp(name, "refresh_ms")) gpu->refresh_ms = value;
    else if (!strcmp(name, "counter_mj")) gpu->true_mj = gpu->shown_mj = value;
    else if (!strcmp(name, "energy_error")) gpu->energy_error = value;
    else if (!strcmp(name, "field_energy_error")) gpu->field_energy_error = value;
    else if (!strcmp(name, "module_error")) gpu->module_error = value;
    else if (!strcmp(name, "power_error")) gpu->power_error = value;
    else if (!strcmp(name, "field_power_error")) gpu->field_power_error = value;
    else if (!strcmp(name, "events_error")) gpu->events_error = value;
    else if (!strcmp(name, "lost")) gpu->lost = value;
    else if (!strcmp(name, "stuck")) gpu->stuck = value;
    else if (!strcmp(name, "mig")) gpu->mig = value;
    else if (!strcmp(name, "uncorrected")) gpu->uncorrected = value;
    else if (!strcmp(name, "throttle")) gpu->throttle = value;
    else if (!strcmp(name, "xid") && gpu->num_xids < MAX_XIDS) gpu->xids[gpu->num_xids++] = (unsigned long long)value;
    else return -1;
    return 0;
}

__attribute__((constructor)) static void from_environment(void) {
    const char *count = getenv("JOULEWAY_STAND_IN_GPUS");
    stand_in_clear(count ? atoi(count) : 0);
}

/* -- NVML's side */

static int check(void *device) {
    if (!num_inits) return UNINITIALIZED;
    Gpu *gpu = device;
    if (gpu < gpus || gpu >= gpus + num_gpus) return INVALID_ARGUMENT;
    return gpu->lost ? GPU_IS_LOST : SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (is_driver_absent) return DRIVER_NOT_LOADED;
    num_inits++;
    return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return num_inits ? (num_inits--, SUCCESS) : UNINITIALIZED; }
const char *nvmlErrorString(int code) { (void)code; return "stand-in error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = num_gpus; return num_inits ? SUCCESS : UNINITIALIZED; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if ((int)index >= num_gpus) return INVALID_ARGUMENT;
    *device = &gpus[index];
    return check(*device);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    const char *wanted = strncmp(uuid, "MIG-", 4) ? uuid : uuid + 4;  /* an instance: MIG-GPU-... */
    for (int i = 0; i < num_gpus; i++)
        if (!strcmp(gpus[i].uuid, wanted)) { *device = &gpus[i]; return check(*device); }
    return NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *instance, void **device) {
    *device = instance;
    return check(instance);
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    snprintf(uuid, size, "%s", ((Gpu *)device)->uuid);
    return check(device);
}

int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    snprintf(name, size, "%s", device == &gpus[0] ? "NVIDIA H100 80GB HBM3" : "NVIDIA B200");
    return check(device);
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    *current = *pending = ((Gpu *)device)->mig == 1;
    return ((Gpu *)device)->mig < 0 ? NOT_SUPPORTED : check(device);
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    int code = check(device);
    if (code) return code;
    *mj = ((Gpu *)device)->shown_mj;
    return ((Gpu *)device)->energy_error;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
    int code = check(device);
    if (code) return code;
    *mw = ((Gpu *)device)->watts * 1000;
    return ((Gpu *)device)->power_error;
}

int nvmlDeviceGetFieldValues(void *device, int count, FieldValue *values) {
    int code = check(device);
    if (code) return code;
    Gpu *gpu = device;
    for (int i = 0; i < count; i++) {
        FieldValue *value = &values[i];
        int is_module = value->scope == SCOPE_MODULE;
        value->type = TYPE_UNSIGNED_INT;
        value->value.ui = gpu->watts * 1000;
        switch (value->field) {
        case FIELD_POWER_AVERAGE:
        case FIELD_POWER_INSTANT:
            value->result = is_module ? gpu->module_error
                                      : (gpu->power_error ? gpu->power_error : gpu->field_power_error);
            break;
        case FIELD_ENERGY_OLD:
        case FIELD_ENERGY:
            value->type = TYPE_UNSIGNED_LONG_LONG;
            value->value.ull = gpu->shown_mj;
            value->result = is_module ? gpu->module_error
                          : value->field == FIELD_ENERGY ? gpu->field_energy_error : gpu->energy_error;
            break;
        default:
            value->result = NOT_SUPPORTED;
        }
    }
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *count) {
    (void)kind; (void)counter;
    *count = ((Gpu *)device)->uncorrected;
    return check(device);
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    *reasons = ((Gpu *)device)->throttle;
    return check(device);
}

int nvmlEventSetCreate(void **set) {
    event_sets[num_event_sets % MAX_GPUS] = NULL;
    *set = &event_sets[num_event_sets++ % MAX_GPUS];
    return SUCCESS;
}
int nvmlEventSetFree(void *set) { (void)set; num_event_sets--; return SUCCESS; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
    (void)types;
    *(Gpu **)set = device;
    return ((Gpu *)device)->events_error ? (int)((Gpu *)device)->events_error : check(device);
}

int nvmlEventSetWait_v2(void *set, EventData *data, unsigned timeout_ms) {
    (void)timeout_ms;
    Gpu *gpu = *(Gpu **)set;
    if (!gpu || !gpu->num_xids) return TIMEOUT;
    memset(data, 0, sizeof *data);
    data->device = gpu;
    data->type = 8;
    data->data = gpu->xids[--gpu->num_xids];
    return SUCCESS;
}
