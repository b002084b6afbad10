#pragma once
#include <gtest/gtest.h>

#include <string>

#include "base/torch.h"

namespace seqloom {

/// |got - want| <= tolerance * (1 + max |want|) everywhere.
inline void expect_near(const torch::Tensor& got, const torch::Tensor& want, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  if (want.numel() == 0) return;
  const auto difference = (got.to(torch::kFloat64) - want.to(torch::kFloat64)).abs().max().item<double>();
  EXPECT_LE(difference, tolerance * (1 + want.abs().max().item<double>())) << what;
}

}  // namespace seqloom
