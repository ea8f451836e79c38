#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A CUDA driver that keeps its memory on the host and says what it is called with. */
typedef int R;
typedef unsigned long long U;
#define SAY(...) do { fprintf(stderr, __VA_ARGS__); fputc('\n', stderr); } while (0)
static size_t taken;
static U handles;
static size_t sizes[1000];

R cuInit(unsigned flags) { SAY("cuInit %u", flags); return 0; }
R cuDriverGetVersion(int *v) { *v = 13000; return 0; }
R cuDeviceGet(int *device, int ordinal) { SAY("cuDeviceGet %d", ordinal); *device = ordinal; return 0; }
R cuDevicePrimaryCtxRetain(void **context, int device) { SAY("cuDevicePrimaryCtxRetain %d", device); *context = (void *)0x1234; return 0; }
R cuCtxSetCurrent(void *context) { SAY("cuCtxSetCurrent %p", context); return 0; }
struct Prop { int type, requested, location_type, location_id; void *meta; unsigned char rest[8]; };
R cuMemGetAllocationGranularity(size_t *g, const struct Prop *p, int option) {
  SAY("cuMemGetAllocationGranularity type %d location %d:%d option %d", p->type, p->location_type, p->location_id, option);
  *g = 2097152; return 0; }
R cuMemAddressReserve(U *p, size_t size, size_t alignment, U at, U flags) {
  SAY("cuMemAddressReserve %zu %zu %llu %llu", size, alignment, at, flags);
  *p = 0x7000000000ull; return 0; }
R cuMemAddressFree(U p, size_t size) { SAY("cuMemAddressFree %llx %zu", p, size); return 0; }
R cuMemCreate(U *handle, size_t size, const struct Prop *p, U flags) {
  SAY("cuMemCreate %zu type %d location %d:%d requested %d flags %llu", size, p->type, p->location_type, p->location_id, p->requested, flags);
  if (taken + size > 8u << 20) return 2;
  taken += size; *handle = ++handles; sizes[handles] = size; return 0; }
R cuMemMap(U p, size_t size, size_t offset, U handle, U flags) { SAY("cuMemMap %llx %zu %zu %llu %llu", p, size, offset, handle, flags); return 0; }
struct Access { int location_type, location_id, flags; };
R cuMemSetAccess(U p, size_t size, const struct Access *a, size_t count) {
  SAY("cuMemSetAccess %llx %zu location %d:%d flags %d count %zu", p, size, a->location_type, a->location_id, a->flags, count); return 0; }
R cuMemUnmap(U p, size_t size) { SAY("cuMemUnmap %llx %zu", p, size); return 0; }
R cuMemRelease(U handle) { SAY("cuMemRelease %llu", handle); taken -= sizes[handle]; return 0; }
R cuMemGetInfo_v2(size_t *free, size_t *total) { *total = 8u << 20; *free = *total - taken; return 0; }
R cuMemHostRegister_v2(void *p, size_t size, unsigned flags) { SAY("cuMemHostRegister %p %zu %u", p, size, flags); return 0; }
R cuMemHostUnregister(void *p) { SAY("cuMemHostUnregister %p", p); return 0; }
R cuGetErrorName(R error, const char **name) { *name = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN"; return 0; }

#define AS(name, function) if (!strcmp(symbol, name)) { *found = (void *)function; return 0; }
R cuGetProcAddress_v2(const char *symbol, void **found, int version, U flags, int *status) {
  if (status) *status = 0;
  AS("cuInit", cuInit) AS("cuDriverGetVersion", cuDriverGetVersion) AS("cuDeviceGet", cuDeviceGet)
  AS("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain) AS("cuCtxSetCurrent", cuCtxSetCurrent)
  AS("cuMemGetAllocationGranularity", cuMemGetAllocationGranularity) AS("cuMemAddressReserve", cuMemAddressReserve)
  AS("cuMemAddressFree", cuMemAddressFree) AS("cuMemCreate", cuMemCreate) AS("cuMemMap", cuMemMap)
  AS("cuMemSetAccess", cuMemSetAccess) AS("cuMemUnmap", cuMemUnmap) AS("cuMemRelease", cuMemRelease)
  AS("cuMemGetInfo", cuMemGetInfo_v2) AS("cuMemHostRegister", cuMemHostRegister_v2)
  AS("cuMemHostUnregister", cuMemHostUnregister) AS("cuGetErrorName", cuGetErrorName)
  *found = NULL; if (status) *status = 1; return 500; }
