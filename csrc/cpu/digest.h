// A 512-bit digest of a weight's bytes, to detect edits that make a packed copy stale.
//
// Not cryptographic. It accumulates as XXH3 does (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md): sums of
// 32x32-bit products, at memory speed. All eight accumulators are kept, so an edit within one aligned 8-byte word
// always changes the digest of its 256 KiB; any other edit is missed with a probability of about 2^-64.
#pragma once
#include <array>

#include "common/torch_abi.h"

namespace resnet_fused::cpu {

using Digest = std::array<uint64_t, 8>;

// Digest of all bytes from the first to the last element, gaps included; multithreaded if large.
Digest digest_of(const Tensor& t);

// Digest of the first and last 4 KiB: distinguishes weights, does not detect edits.
Digest sample_of(const Tensor& t);

}  // namespace resnet_fused::cpu
