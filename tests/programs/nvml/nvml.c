/* Stands in for the library of NVIDIA's driver (NVML) where there is no GPU: it tells of one that is there and has little to do.
   It has what `inference-pod` asks for and nothing else, by the names and layouts of nvml.h of CUDA 12. */

enum { SUCCESS = 0, INVALID_ARGUMENT = 2 };

typedef struct {
    unsigned int gpu, memory; /* percent of the last period */
} Utilization;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used; /* bytes */
} Memory;

static int the_gpu;

int nvmlInit_v2(void) { return SUCCESS; }

int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 1;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = &the_gpu;
    return index == 0 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    if (device != &the_gpu || memory->version != (sizeof(Memory) | 2u << 24)) return INVALID_ARGUMENT;
    memory->total = 16ull << 30;
    memory->reserved = 1ull << 28;
    memory->used = 3ull << 30;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) {
    if (device != &the_gpu) return INVALID_ARGUMENT;
    rates->gpu = 7;
    rates->memory = 2;
    return SUCCESS;
}
