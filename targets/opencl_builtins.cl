/* What OpenCL C has built in, as functions that are compiled with the kernel. */
#define INLINE static inline __attribute__((always_inline, overloadable))
#define LEAST(type)                                                             \
  INLINE type inline_min(type a, type b) { return b < a ? b : a; }              \
  INLINE type inline_max(type a, type b) { return a < b ? b : a; }
#define MEMORY(type, n, space)                                                  \
  INLINE type##n inline_vload##n(size_t i, const space type* at) {              \
    return *(const space unaligned_##type##n*)(at + i * n);                     \
  }                                                                             \
  INLINE void inline_vstore##n(type##n value, size_t i, space type* at) {       \
    *(space unaligned_##type##n*)(at + i * n) = value;                          \
  }
#define VECTOR(type, n)                                                         \
  typedef type unaligned_##type##n                                              \
      __attribute__((ext_vector_type(n), aligned(sizeof(type)), may_alias));    \
  LEAST(type##n)                                                                \
  MEMORY(type, n, __global) MEMORY(type, n, __local) MEMORY(type, n, __private)
#define TYPE(type)                                                              \
  LEAST(type) VECTOR(type, 2) VECTOR(type, 4) VECTOR(type, 8) VECTOR(type, 16)

TYPE(char) TYPE(uchar) TYPE(short) TYPE(ushort) TYPE(int) TYPE(uint) TYPE(long) TYPE(ulong)
TYPE(float)
#ifdef cl_khr_fp64
TYPE(double)
#endif
#ifdef cl_khr_fp16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
TYPE(half)
#endif
