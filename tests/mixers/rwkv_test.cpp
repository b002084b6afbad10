// What the laws cannot ask of RWKV: layers that read another layer's values, and a memory behind padding.
#include <gtest/gtest.h>

#include "base/error.h"
#include "mixers/rwkv6.h"
#include "mixers/rwkv7.h"
#include "support/compare.h"

namespace seqloom {
namespace {

constexpr int64_t kWidth = 24, kTokens = 19;

Rwkv7Options upper_layer() {
  Rwkv7Options options;
  options.heads = 2;
  options.layer = 1;
  return options;
}

TEST(Rwkv7Layers, UpperLayersMixTheFirstLayersValues) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(5);
  Rwkv7Options lower = upper_layer();
  lower.layer = 0;
  Rwkv7 first(kWidth, lower), second(kWidth, upper_layer());
  const Tensor x = torch::randn({2, kTokens, kWidth});
  Pass pass;
  const Tensor whole = second.forward(first.forward(x, pass), pass);
  Pass other;
  other.values["v_first"] = torch::zeros_like(x);
  EXPECT_GT((second.forward(first.forward(x), other) - whole).abs().max().item<double>(), 1e-3);

  Memory below = first.empty_memory(2), above = second.empty_memory(2);
  std::vector<Tensor> outputs;
  for (const auto& [begin, size] : {std::pair<int64_t, int64_t>{0, 1}, {1, 11}, {12, 7}}) {
    Pass part;
    const Tensor h = first.extend(x.narrow(1, begin, size), below, part);
    outputs.push_back(second.extend(h, above, part));
  }
  expect_near(torch::cat(outputs, 1), whole, 1e-5, "two layers streamed");
}

TEST(Rwkv7Layers, UpperLayersAskForTheFirstLayersValues) {
  Rwkv7 mixer(kWidth, upper_layer());
  EXPECT_THROW(mixer.forward(torch::randn({1, 3, kWidth})), UsageError);
  Pass pass;
  pass.values["v_first"] = torch::randn({1, 4, kWidth});
  EXPECT_THROW(mixer.forward(torch::randn({1, 3, kWidth}), pass), UsageError);
  EXPECT_THROW(mixer.summarize(torch::randn({1, 3, kWidth})), UsageError);
  EXPECT_THROW(mixer.summarize(torch::randn({1, 3, kWidth}), pass), UsageError);
}

/// Padding anywhere in a row leaves outputs and memory as if it were not there.
void expect_padding_is_nothing(CausalMixer& mixer) {
  const torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({1, kTokens, kWidth});
  const Tensor keep = torch::ones({1, kTokens}, torch::kBool);
  for (const int64_t hole : {0, 4, 5, 11, 17, 18}) keep[0][hole] = false;
  Pass pass;
  pass.layout = Layout::masked(keep);
  Memory with = mixer.empty_memory(1), without = mixer.empty_memory(1);
  const Tensor y = mixer.extend(x, with, pass).index({keep});
  expect_near(y, mixer.extend(x.index({keep}).unsqueeze(0), without)[0], 1e-5, "outputs of real tokens");
  for (const auto& [name, tensor] : without.tensors()) expect_near(with.at(name), tensor, 1e-5, name);
}

TEST(RwkvPadding, LeavesNoTrace) {
  torch::manual_seed(6);
  Rwkv7Options seven;
  seven.heads = 2;
  Rwkv7 rwkv7(kWidth, seven);
  expect_padding_is_nothing(rwkv7);
  Rwkv6Options six;
  six.heads = 2;
  Rwkv6 rwkv6(kWidth, six);
  expect_padding_is_nothing(rwkv6);
}

}  // namespace
}  // namespace seqloom
