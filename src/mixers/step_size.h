#pragma once

#include <cmath>

#include "base/fields.h"
#include "base/torch.h"

namespace seqloom {

/// The options of a selective state space model's initial step sizes, drawn log-uniformly (Gu & Dao 2023, sec. 3.6).
struct StepSizeInit {
  double dt_min = 1e-3, dt_max = 0.1, dt_init_floor = 1e-4;

  void describe(Fields& f) {
    f.add("dt_min", dt_min, "smallest initial step size").greater_than(0);
    f.add("dt_max", dt_max, "largest initial step size").greater_than(0);
    f.add("dt_init_floor", dt_init_floor, "initial step sizes are at least this").greater_than(0);
  }

  /// softplus^-1 of such step sizes, [count]. Throws UsageError when dt_max < dt_min.
  torch::Tensor bias(int64_t count) const {
    if (dt_max < dt_min) misuse("dt_max = {:g} is below dt_min = {:g}", dt_max, dt_min);
    const torch::Tensor dt = (torch::rand({count}) * (std::log(dt_max) - std::log(dt_min)) + std::log(dt_min))
                                 .exp()
                                 .clamp_min(dt_init_floor);
    return dt + (-(-dt).expm1()).log();
  }
};

}  // namespace seqloom
