// Whether this process may use AMX. Compiled for any processor.
#pragma once

namespace resnet_fused::cpu::amx {

// On a processor with AMX: whether the system grants the tile registers and a product of two tiles, with fewer rows
// than a tile has, is what the definition gives. Asked once per process.
bool available();

}  // namespace resnet_fused::cpu::amx
