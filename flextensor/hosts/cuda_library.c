/* The host side of an exported CUDA kernel: finds the driver at run time, so that the library loads
 * on any machine, and says in words what is missing. Built as
 *
 *     cc -shared -fPIC -DFT_ENTRY=kernel -include kernel_data.h cuda_library.c -ldl -lpthread
 *
 * with the kernel's machine code and launches (`struct ft_launch`) as data; kernel.h has the
 * interface. What is named here begins with ft_, for a kernel may have any other name.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define FT_JOINED(name, end) name##end
#define FT_NAMED(name, end) FT_JOINED(name, end)
#define FT_PUBLIC __attribute__((visibility("default")))

enum { FT_MOST_DYNAMIC_SHARED = 8 }; /* CUfunction_attribute */
enum { FT_NO_BINARY_FOR_GPU = 209 }; /* CUresult */
enum { FT_BUFFERS = sizeof FT_SIZES / sizeof *FT_SIZES };
enum { FT_LAUNCHES = sizeof FT_LAUNCH / sizeof *FT_LAUNCH };
enum { FT_VECTOR = 16 }; /* bytes that a kernel loads at a time, at most */

typedef uint64_t ft_pointer;
typedef int ft_result;

static struct {
  ft_result (*cuInit)(unsigned);
  ft_result (*cuDeviceGet)(int *, int);
  ft_result (*cuDevicePrimaryCtxRetain)(void **, int);
  ft_result (*cuCtxGetCurrent)(void **);
  ft_result (*cuCtxPushCurrent_v2)(void *);
  ft_result (*cuCtxPopCurrent_v2)(void **);
  ft_result (*cuCtxSynchronize)(void);
  ft_result (*cuModuleLoadData)(void **, const void *);
  ft_result (*cuModuleGetFunction)(void **, void *, const char *);
  ft_result (*cuFuncSetAttribute)(void *, int, int);
  ft_result (*cuMemAlloc_v2)(ft_pointer *, size_t);
  ft_result (*cuMemFree_v2)(ft_pointer);
  ft_result (*cuMemcpyHtoD_v2)(ft_pointer, const void *, size_t);
  ft_result (*cuMemcpyDtoH_v2)(void *, ft_pointer, size_t);
  ft_result (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                              unsigned, void *, void **, void **);
  ft_result (*cuGetErrorName)(ft_result, const char **);
} ft_driver;

static pthread_mutex_t ft_lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static int ft_ready;
static void *ft_context, *ft_module, *ft_kernels[FT_LAUNCHES];
static ft_pointer ft_workspaces[FT_BUFFERS]; /* those of parameters are 0 */
static __thread char ft_message[256];

static int ft_failed(const char *what, ft_result code) {
  const char *name = NULL;
  if (ft_driver.cuGetErrorName) ft_driver.cuGetErrorName(code, &name);
  if (name)
    snprintf(ft_message, sizeof ft_message, "CUDA: %s: %s", what, name);
  else
    snprintf(ft_message, sizeof ft_message, "CUDA: %s: error %d", what, code);
  return 1;
}

#define FT_ASK(function, ...)                                                       \
  do {                                                                              \
    ft_result code_ = ft_driver.function(__VA_ARGS__);                              \
    if (code_) return ft_failed(#function, code_);                                  \
  } while (0)

static int ft_find_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) {
    snprintf(ft_message, sizeof ft_message, "no CUDA driver: libcuda.so.1 was not found");
    return 1;
  }
#define FT_FIND(function)                                                           \
  if (!(*(void **)&ft_driver.function = dlsym(library, #function))) {               \
    snprintf(ft_message, sizeof ft_message,                                         \
             "this CUDA driver is too old: it has no %s", #function);               \
    return 1;                                                                       \
  }
  FT_FIND(cuInit) FT_FIND(cuDeviceGet) FT_FIND(cuDevicePrimaryCtxRetain) FT_FIND(cuCtxGetCurrent)
  FT_FIND(cuCtxPushCurrent_v2) FT_FIND(cuCtxPopCurrent_v2) FT_FIND(cuCtxSynchronize)
  FT_FIND(cuModuleLoadData) FT_FIND(cuModuleGetFunction) FT_FIND(cuFuncSetAttribute)
  FT_FIND(cuMemAlloc_v2) FT_FIND(cuMemFree_v2) FT_FIND(cuMemcpyHtoD_v2) FT_FIND(cuMemcpyDtoH_v2)
  FT_FIND(cuLaunchKernel) FT_FIND(cuGetErrorName)
  return 0;
}

/* The caller's context, or that of the first card, which CUDA's runtime and PyTorch share. */
static int ft_find_context(void) {
  int device;
  FT_ASK(cuInit, 0);
  FT_ASK(cuCtxGetCurrent, &ft_context);
  if (ft_context) return 0;
  FT_ASK(cuDeviceGet, &device, 0);
  FT_ASK(cuDevicePrimaryCtxRetain, &ft_context, device);
  return 0;
}

static int ft_load(void) {
  ft_result code = ft_module ? 0 : ft_driver.cuModuleLoadData(&ft_module, FT_CUBIN);
  if (code == FT_NO_BINARY_FOR_GPU) code = ft_driver.cuModuleLoadData(&ft_module, FT_PTX);
  if (code) return ft_failed("this card does not take the kernel, made for " FT_ARCHITECTURE, code);
  for (int i = 0; i < FT_LAUNCHES; ++i) {
    FT_ASK(cuModuleGetFunction, &ft_kernels[i], ft_module, FT_LAUNCH[i].kernel);
    if (FT_LAUNCH[i].shared)
      FT_ASK(cuFuncSetAttribute, ft_kernels[i], FT_MOST_DYNAMIC_SHARED, (int)FT_LAUNCH[i].shared);
  }
  for (int i = FT_PARAMETERS; i < FT_BUFFERS; ++i)
    if (!ft_workspaces[i]) FT_ASK(cuMemAlloc_v2, &ft_workspaces[i], FT_SIZES[i]);
  ft_ready = 1;
  return 0;
}

static int ft_launch_all(const ft_pointer *given, void *stream) {
  for (int i = 0; i < FT_LAUNCHES; ++i) {
    const struct ft_launch *own = &FT_LAUNCH[i];
    ft_pointer values[FT_MOST_ARGUMENTS];
    void *addresses[FT_MOST_ARGUMENTS];
    for (int a = 0; a < own->count; ++a) {
      int position = own->arguments[a];
      values[a] = position < FT_PARAMETERS ? given[position] : ft_workspaces[position];
      addresses[a] = &values[a];
    }
    FT_ASK(cuLaunchKernel, ft_kernels[i], own->grid[0], own->grid[1], own->grid[2], own->block[0],
        own->block[1], own->block[2], own->shared, stream, addresses, NULL);
  }
  return 0;
}

static int ft_on_device(void *const *buffers, void *stream) {
  ft_pointer given[FT_PARAMETERS];
  for (int i = 0; i < FT_PARAMETERS; ++i) {
    given[i] = (uintptr_t)buffers[i];
    if (given[i] % FT_VECTOR) {
      snprintf(ft_message, sizeof ft_message,
               "buffer %d is not aligned to %d bytes, which the kernel needs", i, FT_VECTOR);
      return 1;
    }
  }
  return ft_launch_all(given, stream);
}

static int ft_copied(void *const *arrays, ft_pointer *memory) {
  for (int i = 0; i < FT_PARAMETERS; ++i) {
    FT_ASK(cuMemAlloc_v2, &memory[i], FT_SIZES[i]);
    FT_ASK(cuMemcpyHtoD_v2, memory[i], arrays[i], FT_SIZES[i]);
  }
  if (ft_launch_all(memory, NULL)) return 1;
  FT_ASK(cuCtxSynchronize);
  for (int i = 0; i < FT_PARAMETERS; ++i)
    if (FT_WRITTEN[i]) FT_ASK(cuMemcpyDtoH_v2, arrays[i], memory[i], FT_SIZES[i]);
  return 0;
}

static int ft_on_host(void *const *arrays, void *stream) {
  (void)stream;
  ft_pointer memory[FT_PARAMETERS] = {0};
  int code = ft_copied(arrays, memory);
  for (int i = 0; i < FT_PARAMETERS; ++i)
    if (memory[i]) ft_driver.cuMemFree_v2(memory[i]);
  return code;
}

/* One call at a time, for workspaces are the library's. */
static int ft_called(int (*action)(void *const *, void *), void *const *buffers, void *stream) {
  int code = 1;
  pthread_mutex_lock(&ft_lock);
  if ((ft_driver.cuGetErrorName || !ft_find_driver()) && (ft_context || !ft_find_context())) {
    ft_result pushed = ft_driver.cuCtxPushCurrent_v2(ft_context);
    if (pushed) {
      ft_failed("cuCtxPushCurrent", pushed);
    } else {
      void *popped;
      code = (!ft_ready && ft_load()) || action(buffers, stream);
      ft_driver.cuCtxPopCurrent_v2(&popped);
    }
  }
  pthread_mutex_unlock(&ft_lock);
  return code;
}

FT_PUBLIC int FT_ENTRY(void *const *buffers, void *stream) {
  return ft_called(ft_on_device, buffers, stream);
}

FT_PUBLIC int FT_NAMED(FT_ENTRY, _on_host)(void *const *arrays) {
  return ft_called(ft_on_host, arrays, NULL);
}

FT_PUBLIC const char *FT_NAMED(FT_ENTRY, _error)(void) { return ft_message; }
