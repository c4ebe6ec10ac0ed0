// CUDA's vector types, with the alignment that its 16-byte accesses rely on.
#pragma once

#define EMULATED_VECTORS(name, type)                                                                 \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                          \
    struct name##3 { type x, y, z; };                                                                 \
    struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; };       \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                  \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                       \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

EMULATED_VECTORS(char, signed char)
EMULATED_VECTORS(uchar, unsigned char)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(ushort, unsigned short)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(uint, unsigned)
EMULATED_VECTORS(longlong, long long)
EMULATED_VECTORS(ulonglong, unsigned long long)
EMULATED_VECTORS(float, float)

#undef EMULATED_VECTORS

struct alignas(16) double2 {
    double x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
