// SPDX-License-Identifier: MPL-2.0

// All other functions of CUDA's libraries, so that programs that are linked with these start. missing.inc has a line
// MISSING(name) for each function.

#include <stdio.h>

static int missing(const char* name) {
    fprintf(stderr, "CUDA's stand-in: there is no %s\n", name);
    // As a cudaError_t, it is not supported.
    return 801;
}

#define MISSING(name) __attribute__((weak)) int name(void) { return missing(#name); }

#include "missing.inc"
