#pragma once

namespace seqloom::ops {

/// Whether ops may take their fused CPU kernels. On unless the environment says SEQLOOM_FUSED=0; off, every op runs its
/// plain reference in tensor algebra.
bool fused_enabled();
void set_fused_enabled(bool enabled);

}  // namespace seqloom::ops
