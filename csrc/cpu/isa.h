// Compiles one function body for three instruction sets; the loader picks the best one for the machine.
#pragma once

#if defined(__x86_64__)
#define FOR_EVERY_ISA __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_ISA
#endif
