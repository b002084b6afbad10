// The encoder: all layouts give the same vectors, pooling, errors.
#include "models/encoder.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"

namespace seqloom {
namespace {

Config table(const char* changes = "{}") {
  Config all = Config::parse(R"({"width": 12, "max_length": 9, "pooler": true, "layers": [{"repeat": 2,
      "mixer": {"kind": "attention", "heads": 3, "causal": false, "qkv_bias": true, "o_bias": true},
      "channel": {"kind": "mlp", "hidden": 20}}]})");
  all.merge_patch(Config::parse(changes));
  return all;
}

const std::vector<int64_t> kLengths = {4, 1, 7};

TEST(Encoder, PaddedPackedAndAloneAgree) {
  torch::manual_seed(0);
  const torch::NoGradGuard no_grad;
  Encoder encoder(30, table(), "model");
  const Tensor ids = torch::randint(30, {3, 7}, torch::kInt64), types = torch::randint(2, {3, 7}, torch::kInt64);
  Pass padded, packed;
  const Tensor lengths = torch::tensor(kLengths);
  padded.layout = Layout::padded(lengths);
  const Tensor keep = padded.layout.keep(3, 7);
  packed.layout = Layout::packed(torch::tensor({0, 4, 5, 12}, torch::kInt64));
  const auto pack = [&](const Tensor& t) { return t.masked_select(keep).unsqueeze(0); };
  const Tensor a = encoder.hidden(ids, types, padded), b = encoder.hidden(pack(ids), pack(types), packed);
  EXPECT_TRUE(torch::allclose(a.index({keep}), b[0], 1e-5, 1e-5));
  EXPECT_TRUE(torch::allclose(encoder.pooled(a, padded.layout), encoder.pooled(b, packed.layout), 1e-5, 1e-5));
  for (const char* mode : {"mean", "max", "cls"}) {
    const Tensor in_batch = pooled_tokens(a, padded.layout, mode);
    EXPECT_TRUE(torch::allclose(in_batch, pooled_tokens(b, packed.layout, mode), 1e-5, 1e-5)) << mode;
    for (int64_t r = 0; r < 3; ++r) {
      const int64_t length = kLengths[static_cast<size_t>(r)];
      Pass alone;
      const Tensor h =
          encoder.hidden(ids[r].narrow(0, 0, length).unsqueeze(0), types[r].narrow(0, 0, length).unsqueeze(0), alone);
      EXPECT_TRUE(torch::allclose(in_batch[r], pooled_tokens(h, alone.layout, mode)[0], 1e-5, 1e-5)) << mode;
    }
  }
}

TEST(Encoder, SaysWhatIsWrong) {
  Encoder encoder(30, table(R"({"pooler": false})"), "model");
  Pass pass;
  const auto ids = [](int64_t id, int64_t count) { return torch::full({1, count}, id, torch::kInt64); };
  EXPECT_MISUSE(encoder.hidden(ids(30, 3), {}, pass), "a token id is outside 0..29");
  EXPECT_MISUSE(encoder.hidden(ids(1, 10), {}, pass), "a position (model.max_length) is outside 0..8");
  EXPECT_MISUSE(encoder.hidden(ids(1, 3), ids(2, 3), pass), "a token type is outside 0..1");
  EXPECT_MISUSE(encoder.hidden(ids(1, 3), ids(1, 2), pass), "token types are [1, 2]");
  EXPECT_MISUSE(encoder.pooled(torch::zeros({1, 3, 12}), {}), "no pooler");
  EXPECT_MISUSE(pooled_tokens(torch::zeros({1, 3, 12}), Layout::padded(torch::zeros({1}, torch::kInt64)), "mean"),
                "without tokens");
  EXPECT_MISUSE(pooled_tokens(torch::zeros({1, 3, 12}), {}, "sum"), "expected mean, max or cls");
  EXPECT_MISUSE(Encoder(30, table(R"({"vocabulary_rows": 29})"), "m"), "m.vocabulary_rows = 29: there are 30 tokens");
}

}  // namespace
}  // namespace seqloom
