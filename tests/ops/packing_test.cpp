#include "ops/packing.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "support/compare.h"

namespace seqloom {
namespace {

using torch::Tensor;

TEST(PackPadding, GathersRealTokensAndPutsThemBack) {
  torch::manual_seed(1);
  const Tensor x = torch::randn({4, 6, 2, 3}).requires_grad_(true);
  Tensor mask = torch::rand({4, 6}) > 0.5;
  mask[2].fill_(false);
  const auto packed = ops::pack_padding(x, mask);
  EXPECT_TRUE(torch::equal(packed.cu_seqlens.diff(), mask.sum(1)));
  EXPECT_EQ(packed.longest, mask.sum(1).max().item<int64_t>());
  EXPECT_TRUE(torch::equal(packed.data, x.index({mask})));
  const Tensor back = ops::unpack_padding(packed.data, packed.indices, 4, 6);
  const Tensor wanted = mask.unsqueeze(-1).unsqueeze(-1).to(torch::kFloat32);
  EXPECT_TRUE(torch::equal(back, x * wanted));
  const Tensor cotangent = torch::randn(x.sizes());
  EXPECT_TRUE(torch::equal(torch::autograd::grad({back}, {x}, {cotangent})[0], cotangent * wanted));
}

TEST(PackPadding, TakesMasksOfNumbersAndNoTokensAtAll) {
  const Tensor x = torch::randn({2, 3, 5});
  EXPECT_EQ(ops::pack_padding(x, torch::ones({2, 3}, torch::kInt64)).data.size(0), 6);
  const auto none = ops::pack_padding(x, torch::zeros({2, 3}));
  EXPECT_EQ(none.data.size(0), 0);
  EXPECT_EQ(none.longest, 0);
  EXPECT_EQ(ops::unpack_padding(none.data, none.indices, 2, 3).abs().sum().item<float>(), 0);
}

TEST(PackPadding, RefusesHolesWhereAPrefixIsAskedForAndWrongInputs) {
  const Tensor x = torch::randn({2, 3, 5}), holes = torch::tensor({1, 0, 1, 1, 1, 0}).view({2, 3});
  EXPECT_NO_THROW(ops::pack_padding(x, holes));
  EXPECT_THROW(ops::pack_padding(x, holes, /*allow_holes=*/false), UsageError);
  EXPECT_THROW(ops::pack_padding(x, holes * 2), UsageError);
  EXPECT_THROW(ops::pack_padding(x, torch::ones({2, 4})), UsageError);
  EXPECT_THROW(ops::pack_padding(torch::randn({3}), torch::ones({3})), UsageError);
  EXPECT_THROW(ops::unpack_padding(x, torch::zeros({3}, torch::kInt64), 2, 3), UsageError);
  EXPECT_THROW(ops::unpack_padding(torch::randn({1, 5}), torch::full({1}, 6, torch::kInt64), 2, 3), UsageError);
  EXPECT_THROW(ops::unpack_padding(torch::randn({1, 5}), torch::full({1}, -1, torch::kInt64), 2, 3), UsageError);
}

}  // namespace
}  // namespace seqloom
