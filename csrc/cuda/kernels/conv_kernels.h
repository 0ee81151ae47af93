// The table of convolution kernels. A line X(engine, kernel) declares Engine::engine, launch_<kernel>,
// compiled_<kernel> and <kernel>_planner, and adds them to the plan (plan/plan.cpp), the ops (ops/conv.cpp) and the
// emulator's bindings. In order of preference: of two equal predicted times, the plan takes the first.
#pragma once

#define CONV_KERNELS(X)                          \
  X(kSm90Rows, conv_rows) /* sm90/conv_rows.h */ \
  X(kSm90, conv_sm90)     /* sm90/conv_sm90.h */ \
  X(kSm80, conv_fwd)      /* sm80/conv_fwd.h */
