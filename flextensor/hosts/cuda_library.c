/* The host side of an exported CUDA kernel: finds the driver at run time, so that the library loads
 * on any machine, and says in words what is missing. Built as
 *
 *     cc -shared -fPIC -DENTRY=kernel -include kernel_data.h cuda_library.c -ldl -lpthread
 *
 * with the kernel's machine code and launches (`struct launch`) as data; kernel.h has the interface.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define JOINED(name, end) name##end
#define NAMED(name, end) JOINED(name, end)
#define PUBLIC __attribute__((visibility("default")))

enum { MOST_DYNAMIC_SHARED = 8 };   /* CUfunction_attribute */
enum { NO_BINARY_FOR_GPU = 209 };   /* CUresult */
enum { BUFFERS = sizeof SIZES / sizeof *SIZES, LAUNCHES = sizeof LAUNCH / sizeof *LAUNCH };

typedef uint64_t pointer;
typedef int result;

static struct {
  result (*cuInit)(unsigned);
  result (*cuDeviceGet)(int *, int);
  result (*cuDevicePrimaryCtxRetain)(void **, int);
  result (*cuCtxGetCurrent)(void **);
  result (*cuCtxPushCurrent_v2)(void *);
  result (*cuCtxPopCurrent_v2)(void **);
  result (*cuCtxSynchronize)(void);
  result (*cuModuleLoadData)(void **, const void *);
  result (*cuModuleGetFunction)(void **, void *, const char *);
  result (*cuFuncSetAttribute)(void *, int, int);
  result (*cuMemAlloc_v2)(pointer *, size_t);
  result (*cuMemFree_v2)(pointer);
  result (*cuMemcpyHtoD_v2)(pointer, const void *, size_t);
  result (*cuMemcpyDtoH_v2)(void *, pointer, size_t);
  result (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                           unsigned, void *, void **, void **);
  result (*cuGetErrorName)(result, const char **);
} driver;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static int ready;
static void *context, *module, *kernels[LAUNCHES];
static pointer workspaces[BUFFERS]; /* those of parameters are 0 */
static __thread char message[256];

static int failed(const char *what, result code) {
  const char *name = NULL;
  if (driver.cuGetErrorName) driver.cuGetErrorName(code, &name);
  if (name)
    snprintf(message, sizeof message, "CUDA: %s: %s", what, name);
  else
    snprintf(message, sizeof message, "CUDA: %s: error %d", what, code);
  return 1;
}

#define ASK(function, ...)                                       \
  do {                                                           \
    result code_ = driver.function(__VA_ARGS__);                 \
    if (code_) return failed(#function, code_);                  \
  } while (0)

static int find_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) {
    snprintf(message, sizeof message, "no CUDA driver: libcuda.so.1 was not found");
    return 1;
  }
#define FIND(function)                                                                          \
  if (!(*(void **)&driver.function = dlsym(library, #function))) {                              \
    snprintf(message, sizeof message, "this CUDA driver is too old: it has no %s", #function);  \
    return 1;                                                                                   \
  }
  FIND(cuInit) FIND(cuDeviceGet) FIND(cuDevicePrimaryCtxRetain) FIND(cuCtxGetCurrent)
  FIND(cuCtxPushCurrent_v2) FIND(cuCtxPopCurrent_v2) FIND(cuCtxSynchronize)
  FIND(cuModuleLoadData) FIND(cuModuleGetFunction) FIND(cuFuncSetAttribute)
  FIND(cuMemAlloc_v2) FIND(cuMemFree_v2) FIND(cuMemcpyHtoD_v2) FIND(cuMemcpyDtoH_v2)
  FIND(cuLaunchKernel) FIND(cuGetErrorName)
  return 0;
}

/* The caller's context, or that of the first card, which CUDA's runtime and PyTorch share. */
static int find_context(void) {
  int device;
  ASK(cuInit, 0);
  ASK(cuCtxGetCurrent, &context);
  if (context) return 0;
  ASK(cuDeviceGet, &device, 0);
  ASK(cuDevicePrimaryCtxRetain, &context, device);
  return 0;
}

static int load(void) {
  result code = module ? 0 : driver.cuModuleLoadData(&module, CUBIN);
  if (code == NO_BINARY_FOR_GPU) code = driver.cuModuleLoadData(&module, PTX);
  if (code) return failed("this card does not take the kernel, made for " ARCHITECTURE, code);
  for (int i = 0; i < LAUNCHES; ++i) {
    ASK(cuModuleGetFunction, &kernels[i], module, LAUNCH[i].kernel);
    if (LAUNCH[i].shared)
      ASK(cuFuncSetAttribute, kernels[i], MOST_DYNAMIC_SHARED, (int)LAUNCH[i].shared);
  }
  for (int i = PARAMETERS; i < BUFFERS; ++i)
    if (!workspaces[i]) ASK(cuMemAlloc_v2, &workspaces[i], SIZES[i]);
  ready = 1;
  return 0;
}

static int launch_all(const pointer *given, void *stream) {
  for (int i = 0; i < LAUNCHES; ++i) {
    const struct launch *own = &LAUNCH[i];
    pointer values[MOST_ARGUMENTS];
    void *addresses[MOST_ARGUMENTS];
    for (int a = 0; a < own->count; ++a) {
      int position = own->arguments[a];
      values[a] = position < PARAMETERS ? given[position] : workspaces[position];
      addresses[a] = &values[a];
    }
    ASK(cuLaunchKernel, kernels[i], own->grid[0], own->grid[1], own->grid[2], own->block[0],
        own->block[1], own->block[2], own->shared, stream, addresses, NULL);
  }
  return 0;
}

static int on_device(void *const *buffers, void *stream) {
  pointer given[PARAMETERS];
  for (int i = 0; i < PARAMETERS; ++i) given[i] = (uintptr_t)buffers[i];
  return launch_all(given, stream);
}

static int copied(void *const *arrays, pointer *memory) {
  for (int i = 0; i < PARAMETERS; ++i) {
    ASK(cuMemAlloc_v2, &memory[i], SIZES[i]);
    ASK(cuMemcpyHtoD_v2, memory[i], arrays[i], SIZES[i]);
  }
  if (launch_all(memory, NULL)) return 1;
  ASK(cuCtxSynchronize);
  for (int i = 0; i < PARAMETERS; ++i)
    if (WRITTEN[i]) ASK(cuMemcpyDtoH_v2, arrays[i], memory[i], SIZES[i]);
  return 0;
}

static int on_host(void *const *arrays, void *stream) {
  (void)stream;
  pointer memory[PARAMETERS] = {0};
  int code = copied(arrays, memory);
  for (int i = 0; i < PARAMETERS; ++i)
    if (memory[i]) driver.cuMemFree_v2(memory[i]);
  return code;
}

/* One call at a time, for workspaces are the library's. */
static int called(int (*action)(void *const *, void *), void *const *buffers, void *stream) {
  int code = 1;
  pthread_mutex_lock(&lock);
  if ((driver.cuGetErrorName || !find_driver()) && (context || !find_context())) {
    result pushed = driver.cuCtxPushCurrent_v2(context);
    if (pushed) {
      failed("cuCtxPushCurrent", pushed);
    } else {
      void *popped;
      code = (!ready && load()) || action(buffers, stream);
      driver.cuCtxPopCurrent_v2(&popped);
    }
  }
  pthread_mutex_unlock(&lock);
  return code;
}

PUBLIC int ENTRY(void *const *buffers, void *stream) { return called(on_device, buffers, stream); }

PUBLIC int NAMED(ENTRY, _on_host)(void *const *arrays) { return called(on_host, arrays, NULL); }

PUBLIC const char *NAMED(ENTRY, _error)(void) { return message; }
