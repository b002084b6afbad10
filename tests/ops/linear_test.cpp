#include "ops/linear.h"

#include "base/error.h"
#include "ops/row_by_row.h"
#include "support/fused_op.h"

namespace seqloom {
namespace {

using torch::Tensor;

/// Weights of every format, with the scale where they have one.
std::vector<std::pair<Tensor, Tensor>> formats(const Tensor& weight) {
  std::vector<std::pair<Tensor, Tensor>> all = {{weight, {}}, {weight.to(torch::kBFloat16), {}}};
  for (const int64_t group : {0, 8, 16, 64}) all.push_back(ops::int8_weight(weight, group));
  return all;
}

Tensor unfused(const Tensor& x, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& bias) {
  ops::set_fused_enabled(false);
  const Tensor y = ops::linear(x, weight, scale, bias);
  ops::set_fused_enabled(true);
  return y;
}

TEST(LinearOp, AFewRowsAreThoseOfTheReferenceInEveryFormat) {
  torch::manual_seed(1);
  for (const auto& [in, out] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {7, 3}, {48, 5}, {64, 37}, {515, 12}, {320, 66}}) {
    const Tensor weight = torch::randn({out, in}), bias = torch::randn({out});
    for (const auto& [kept, scale] : formats(weight)) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8}) {
        SCOPED_TRACE(fmt::format("{} rows, {} -> {}, {}", rows, in, out, toString(kept.scalar_type())));
        const Tensor x = torch::randn({rows, in});
        const Tensor with = unfused(x, kept, scale, bias), without = unfused(x, kept, scale, {});
        on_every_target([&] {
          expect_near(ops::linear(x, kept, scale, bias), with, 1e-5, "with a bias");
          expect_near(ops::linear(x, kept, scale), without, 1e-5, "without");
        });
      }
    }
  }
}

TEST(LinearOp, ManyRowsAreNearTheReference) {
  torch::manual_seed(2);
  const Tensor weight = torch::randn({130, 96}) / 10, bias = torch::randn({130}), x = torch::randn({3, 70, 96});
  for (const auto& [kept, scale] : formats(weight)) {
    const bool rounded = kept.scalar_type() == torch::kBFloat16;  // x too, and y
    expect_near(ops::linear(x, kept, scale, bias), unfused(x, kept, scale, bias), rounded ? 0.02 : 1e-5,
                toString(kept.scalar_type()));
  }
}

TEST(LinearOp, TakesViewsTypesAndAnyLeadingShape) {
  torch::manual_seed(3);
  const Tensor weight = torch::randn({20, 80}), x = torch::randn({40, 2, 3});
  for (const auto& [kept, scale] : formats(weight.narrow(1, 16, 40).contiguous())) {
    const Tensor turned = x.permute({1, 2, 0});
    const Tensor want = unfused(turned, kept, scale, {});
    EXPECT_EQ(want.sizes(), (std::vector<int64_t>{2, 3, 20}));
    expect_near(ops::linear(turned, kept, scale), want, 1e-5, "turned");
    expect_near(ops::linear(turned[0][0], kept, scale), want[0][0], 1e-5, "a vector");
    const Tensor narrow = turned.to(torch::kBFloat16), y = ops::linear(narrow, kept, scale);
    EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
    expect_near(y.to(torch::kFloat32), want, 0.02, "bfloat16");
    EXPECT_EQ(ops::linear(turned.narrow(0, 0, 0), kept, scale).sizes(), (std::vector<int64_t>{0, 3, 20}));
  }
  for (const auto& kept : {weight, weight.to(torch::kBFloat16)}) {  // a part of each row
    const Tensor rows = torch::randn({2, 40});
    expect_near(ops::linear(rows, kept.narrow(1, 16, 40)), unfused(rows, kept.narrow(1, 16, 40), {}, {}), 1e-5, "part");
    expect_near(ops::linear(torch::randn({1, 20}).zero_(), kept.t()), torch::zeros({1, 80}), 1e-5, "transposed");
  }
}

TEST(LinearOp, GradientsGoThroughTheReference) {
  torch::manual_seed(4);
  for (const auto& [kept, scale] : formats(torch::randn({6, 16}))) {
    const Tensor x = torch::randn({2, 16}, torch::requires_grad());
    const Tensor dx = torch::autograd::grad({ops::linear(x, kept, scale).sum()}, {x})[0];
    expect_near(dx, ops::dense_weight(kept, scale, torch::kFloat32).sum(0).expand({2, 16}), 1e-5, "dx");
  }
}

TEST(LinearOp, ResultsDoNotDependOnTheNumberOfThreads) {
  torch::manual_seed(5);
  const Tensor weight = torch::randn({3001, 260}), x = torch::randn({3, 260});
  const int threads = torch::get_num_threads();
  for (const auto& [kept, scale] : formats(weight)) {
    torch::set_num_threads(1);
    const Tensor one = ops::linear(x, kept, scale);
    torch::set_num_threads(3);
    EXPECT_TRUE(ops::linear(x, kept, scale).equal(one)) << toString(kept.scalar_type());
  }
  torch::set_num_threads(threads);
}

TEST(LinearOp, RowByRowEachRowIsWhatItIsAlone) {
  torch::manual_seed(7);
  const Tensor weight = torch::randn({37, 80}), bias = torch::randn({37}), x = torch::randn({150, 80});
  for (const auto& [kept, scale] : formats(weight)) {
    on_every_target([&] {
      std::vector<Tensor> alone;
      for (const Tensor& row : x.split(1)) alone.push_back(ops::linear(row, kept, scale, bias));
      const ops::RowByRow guard;
      for (const int64_t rows : {1, 2, 3, 5, 8, 150}) {
        const Tensor want = torch::cat(alone).narrow(0, 0, rows);
        EXPECT_TRUE(ops::linear(x.narrow(0, 0, rows), kept, scale, bias).equal(want)) << rows << " rows";
      }
    });
  }
  EXPECT_FALSE(ops::RowByRow::on());
}

TEST(LinearOp, Int8IsOffByAtMostHalfAScale) {
  torch::manual_seed(6);
  Tensor weight = torch::randn({9, 96}) * torch::logspace(-6, 6, 9).unsqueeze(1);
  weight[3].zero_();
  for (const int64_t group : {0, 16, 96, 50}) {
    const auto [entries, scale] = ops::int8_weight(weight, group);
    EXPECT_EQ(scale.size(1), group == 16 ? 6 : 1);
    EXPECT_LE(entries.abs().max().item<int>(), 127);
    const Tensor off = (ops::dense_weight(entries, scale, torch::kFloat32) - weight).abs();
    const Tensor most = scale.repeat_interleave(96 / scale.size(1), 1) * 0.5001;
    EXPECT_TRUE(off.le(most).all().item<bool>());
  }
  weight[0][0] = NAN;
  EXPECT_THROW(ops::int8_weight(weight, 0), Error);
}

TEST(LinearOp, RefusesWhatDoesNotFit) {
  const Tensor x = torch::randn({2, 8}), weight = torch::randn({4, 8});
  const auto [entries, scale] = ops::int8_weight(weight, 0);
  EXPECT_THROW(ops::linear(x, torch::randn({4, 7})), UsageError);
  EXPECT_THROW(ops::linear(x, torch::randn({8})), UsageError);
  EXPECT_THROW(ops::linear(torch::ones({2, 8}, torch::kInt64), weight), UsageError);
  EXPECT_THROW(ops::linear(x, entries), UsageError);
  EXPECT_THROW(ops::linear(x, weight, scale), UsageError);
  EXPECT_THROW(ops::linear(x, entries, torch::ones({4, 3})), UsageError);
  EXPECT_THROW(ops::linear(x, entries, torch::ones({3, 1})), UsageError);
  EXPECT_THROW(ops::linear(x, weight, {}, torch::ones({3})), UsageError);
}

}  // namespace
}  // namespace seqloom
