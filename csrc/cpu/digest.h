// A 512-bit digest of a weight's bytes: what tells whether a copy in another order is still a copy of it.
//
// Not cryptographic. The accumulation is that of XXH3 (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md): a sum
// of 32x32-bit products, at the speed of memory. All eight accumulators are kept, so that an edit within one aligned
// 8-byte word always changes the digest of its 256 KiB; any other goes unseen with a probability of about 2^-64.
#pragma once
#include <array>

#include "common/torch_abi.h"

namespace resnet_fused::cpu {

using Digest = std::array<uint64_t, 8>;

// Of the bytes from the first element to the last one, whatever lies between them included; on all threads where there
// is much of it.
Digest digest_of(const Tensor& t);

// Of the first 4 KiB and the last: tells one weight from another, not from itself edited.
Digest sample_of(const Tensor& t);

}  // namespace resnet_fused::cpu
