// The compiled conv_rows kernels by element type. sm90/conv_rows.cu merges them into one menu.
#pragma once
#include "cuda/menu.h"
#include "cuda/sm90/conv_rows.h"

namespace resnet_fused::cuda {

using ConvRowsMenu = Menu<ConvFwdVariant, ConvFwdParams>;

ConvRowsMenu conv_rows_f16();
ConvRowsMenu conv_rows_bf16();

}  // namespace resnet_fused::cuda
