// The compiled conv_rows kernels by element type. sm90/conv_rows.cu merges them into one kernel table.
#pragma once
#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/sm90/conv_rows.h"

namespace resnet_fused::cuda {

using ConvRowsTable = KernelTable<ConvFwdVariant, ConvFwdParams>;

ConvRowsTable conv_rows_f16();
ConvRowsTable conv_rows_bf16();

}  // namespace resnet_fused::cuda
