#include "mixers/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "io/toml.h"
#include "ops/attention.h"

namespace seqloom {
namespace {

std::shared_ptr<Attention> make(int64_t width, const std::string& options) {
  Config table = parse_toml(options, "test");
  table["kind"] = "attention";
  return std::dynamic_pointer_cast<Attention>(make_mixer(width, table, "test"));
}

void expect_close(const Tensor& got, const Tensor& want, double tolerance = 1e-5, const std::string& what = "") {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  const double scale = 1 + want.abs().max().item<double>();
  EXPECT_LE((got.to(torch::kFloat64) - want.to(torch::kFloat64)).abs().max().item<double>(), tolerance * scale) << what;
}

/// Attention from its definition, one query at a time in double precision; shapes as ops::attention.
Tensor naive(const Tensor& q, const Tensor& k, const Tensor& v, const ops::AttentionRule& rule) {
  const int64_t T = q.size(2), S = k.size(2), offset = rule.causal ? S - T : 0, group = q.size(1) / k.size(1);
  Tensor o = torch::zeros(q.sizes(), torch::kFloat64);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(1); ++h) {
      for (int64_t i = 0; i < T; ++i) {
        const Tensor keys = k[b][h / group].to(torch::kFloat64), query = q[b][h][i].to(torch::kFloat64);
        const Tensor relative = torch::arange(S).unsqueeze(0) - (i + offset);
        Tensor s = torch::mv(keys, query) * rule.scale;
        const auto of_distance = [&](const Tensor& table) {
          const int64_t reach = table.size(1) / 2;
          return table[h].index({relative[0].clamp(-reach, reach) + reach});
        };
        if (rule.bias.defined()) s = s + of_distance(rule.bias);
        if (rule.softcap) s = *rule.softcap * torch::tanh(s / *rule.softcap);
        Tensor seen = torch::ones({S}, torch::kBool);
        for (int64_t j = 0; j < S; ++j) {
          const int64_t distance = i + offset - j;
          if (rule.causal && (distance < 0 || (rule.window && distance >= *rule.window))) seen[j] = false;
          if (rule.keep.defined() && !rule.keep[b][j].item<bool>()) seen[j] = false;
        }
        if (!seen.any().item<bool>()) continue;
        Tensor a = torch::softmax(s.masked_fill(seen.logical_not(), -INFINITY), 0);
        if (rule.multiplier.defined()) a = a * of_distance(rule.multiplier);
        o[b][h][i] = torch::mv(v[b][h / group].to(torch::kFloat64).t(), a);
      }
    }
  }
  return o;
}

/// A bias or factor that differs by head and distance, up to `reach`.
Tensor wave(int64_t heads, double strength, int64_t reach = 1300) {
  const Tensor head = torch::arange(1, heads + 1).unsqueeze(1);
  return torch::sin(head * torch::arange(-reach, reach + 1) * 0.7).to(torch::kFloat32) * strength;
}

std::vector<ops::AttentionRule> rules(int64_t batch, int64_t heads, int64_t keys) {
  std::vector<ops::AttentionRule> all;
  const Tensor keep = torch::rand({batch, keys}) > 0.4;
  keep[0].narrow(0, 0, keys / 2).fill_(false);
  for (const bool causal : {true, false}) {
    for (const int64_t window : {0, 1, 4}) {
      if (!causal && window > 0) continue;
      for (int kind = 0; kind < 12; ++kind) {
        ops::AttentionRule rule;
        rule.scale = 0.6;
        rule.causal = causal;
        if (window > 0) rule.window = window;
        if (kind % 2 == 1) rule.keep = keep;
        if (kind / 2 % 2 == 1) rule.bias = wave(heads, 2, kind % 3 == 0 ? 2 : 20);
        if (kind / 4 == 1) rule.softcap = 1.5;
        if (kind / 4 == 2) rule.multiplier = wave(heads, -1);
        all.push_back(rule);
      }
    }
  }
  return all;
}

TEST(AttentionOp, EqualsTheDefinitionUnderEveryRule) {
  torch::manual_seed(1);
  const torch::NoGradGuard no_grad;
  for (const auto& [T, S] : {std::pair<int64_t, int64_t>{7, 7}, {1, 7}, {3, 7}, {1, 1}}) {
    for (const int64_t kv_heads : {4, 2, 1}) {
      const Tensor q = torch::randn({2, 4, T, 6}), k = torch::randn({2, kv_heads, S, 6}),
                   v = torch::randn({2, kv_heads, S, 6});
      for (const auto& rule : rules(2, 4, S)) expect_close(ops::attention(q, k, v, rule), naive(q, k, v, rule));
    }
  }
}

TEST(AttentionOp, FusedAndByHandHaveTheSameGradients) {
  torch::manual_seed(2);
  const auto leaf = [](std::vector<int64_t> shape) {
    return torch::randn(shape, torch::kFloat64).requires_grad_(true);
  };
  const Tensor q = leaf({2, 4, 9, 6}), k = leaf({2, 2, 9, 6}), v = leaf({2, 2, 9, 6});
  for (const auto& rule : rules(2, 4, 9)) {
    const Tensor o = ops::attention(q, k, v, rule), cotangent = torch::randn_like(o);
    const Tensor by_hand = torch::matmul(ops::attention_weights(q, k, rule), v.repeat_interleave(2, 1));
    const auto got = torch::autograd::grad({(o * cotangent).sum()}, {q, k, v});
    const auto want = torch::autograd::grad({(by_hand * cotangent).sum()}, {q, k, v});
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(got[i].isfinite().all().item<bool>()) << "rows that see nothing have gradient 0, not NaN";
      expect_close(got[i], want[i], 1e-10);
    }
  }
}

TEST(AttentionOp, BlocksOfQueriesJoinSeamlessly) {
  torch::manual_seed(3);
  const torch::NoGradGuard no_grad;
  const Tensor q = torch::randn({1, 2, 1100, 8}), k = torch::randn({1, 1, 1300, 8}), v = torch::randn({1, 1, 1300, 8});
  for (const int64_t window : {0, 3, 70, 600}) {
    for (const bool biased : {false, true}) {
      ops::AttentionRule rule;
      if (window > 0) rule.window = window;
      if (biased) rule.bias = wave(2, 1);
      const Tensor dense = torch::matmul(ops::attention_weights(q, k, rule), v.repeat_interleave(2, 1));
      expect_close(ops::attention(q, k, v, rule), dense);
    }
  }
}

TEST(SoftmaxPartial, SegmentsMergedInAnyOrderAreFullAttention) {
  torch::manual_seed(4);
  std::mt19937 random(5);
  const Tensor q = torch::randn({2, 2, 5, 8}) * 6, k = torch::randn({2, 2, 512, 8}), v = torch::randn({2, 2, 512, 8});
  const std::vector<int64_t> cuts = {0, 1, 60, 61, 200, 333, 500, 512};
  for (const bool factor : {false, true}) {
    ops::AttentionRule rule;
    rule.keep = torch::rand({2, 512}) > 0.3;
    rule.keep[0].narrow(0, 61, 139).fill_(false);  // a segment that nobody sees: the identity
    rule.bias = wave(2, 3);
    if (factor) rule.multiplier = wave(2, 1);
    std::vector<size_t> order(cuts.size() - 1);
    std::iota(order.begin(), order.end(), size_t{0});
    for (int round = 0; round < 5; ++round) {
      std::shuffle(order.begin(), order.end(), random);
      ops::SoftmaxPartial total = ops::attention_partial(q, k.narrow(2, 0, 0), v.narrow(2, 0, 0), rule, 0);
      for (const size_t s : order) {
        const int64_t begin = cuts[s], count = cuts[s + 1] - begin;
        ops::AttentionRule part = rule;
        part.keep = rule.keep.narrow(1, begin, count);
        total = ops::merge(
            total, ops::attention_partial(q, k.narrow(2, begin, count), v.narrow(2, begin, count), part, 507 - begin));
      }
      expect_close(ops::value(total), ops::attention(q, k, v, rule), 1e-6);
    }
  }
}

TEST(SoftmaxPartial, NothingAndNothingIsNothing) {
  const ops::SoftmaxPartial nothing = {torch::full({2}, -INFINITY), torch::zeros({2}), torch::zeros({2, 3})};
  const ops::SoftmaxPartial both = ops::merge(nothing, nothing);
  EXPECT_TRUE(both.m.equal(nothing.m));
  EXPECT_TRUE(both.u.equal(nothing.u));
  EXPECT_TRUE(ops::value(both).equal(nothing.w));
}

TEST(Attention, IsProjectionNormRopeAndSoftmax) {
  torch::manual_seed(6);
  const torch::NoGradGuard no_grad;
  auto mixer = make(16,
                    "heads = 4\nkv_heads = 2\nhead_dim = 6\nposition = 'rope'\nrope_base = 50.0\nrotary_dim = 4\n"
                    "qk_norm = true\nqkv_bias = true\no_bias = true\nwindow = 5\nscale = 0.9");
  auto p = mixer->named_parameters();
  p["q_norm.weight"].uniform_();
  const Tensor x = torch::randn({2, 11, 16}), at = torch::arange(11);
  const auto heads = [&](const std::string& name, int64_t count) {
    return torch::linear(x, p[name + "_proj.weight"], p[name + "_proj.bias"]).view({2, 11, count, 6}).transpose(1, 2);
  };
  const auto normed = [&](const Tensor& t, const char* name) {
    return t * torch::rsqrt(t.square().mean(-1, true) + 1e-6) * p[name];
  };
  RopeOptions turn;
  turn.base = 50;
  turn.rotary_dim = 4;
  ops::AttentionRule rule;
  rule.scale = 0.9;
  rule.window = 5;
  const Tensor k = rope(normed(heads("k", 2), "k_norm.weight"), at, turn);
  const Tensor o = naive(rope(normed(heads("q", 4), "q_norm.weight"), at, turn), k, heads("v", 2), rule);
  const Tensor merged = o.to(torch::kFloat32).transpose(1, 2).reshape({2, 11, 24});
  expect_close(mixer->forward(x), torch::linear(merged, p["o_proj.weight"], p["o_proj.bias"]));

  Memory memory = mixer->empty_memory(2);
  mixer->extend(x, memory);
  expect_close(memory["k"], k.narrow(2, 7, 4));  // the ring: the last window - 1 keys, turned
  expect_close(memory["v"], heads("v", 2).narrow(2, 7, 4));
}

TEST(Attention, StreamsAnyChunksLikeOneCall) {
  const torch::NoGradGuard no_grad;
  for (const char* options :
       {"heads = 4\nkv_heads = 1\nposition = 'rope'", "heads = 2\nwindow = 50\nposition = 'alibi'",
        "heads = 2\nwindow = 3\nposition = 'carope'", "heads = 2\nposition = 'urpe'\nbias = 't5'\nwindow = 40",
        "heads = 2\nposition = 'urpe'\nwindow = 9\nmax_positions = 9", "heads = 2\nlogit_softcap = 1.0"}) {
    torch::manual_seed(7);
    auto mixer = make(16, options);
    const Tensor x = torch::randn({2, 256, 16}), whole = mixer->forward(x);
    for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{17, 1, 64, 3, 100, 1, 1, 69}, {255, 1}, {2, 254}}) {
      Memory memory = mixer->empty_memory(2);
      std::vector<Tensor> outputs;
      int64_t begin = 0;
      for (const int64_t size : sizes) {
        outputs.push_back(mixer->extend(x.narrow(1, begin, size), memory));
        begin += size;
      }
      expect_close(torch::cat(outputs, 1), whole, 1e-5, options);
    }
  }
}

TEST(Attention, LeftPaddedStreamsEqualUnpaddedOnes) {
  const torch::NoGradGuard no_grad;
  for (const char* options : {"heads = 4\nkv_heads = 2\nposition = 'rope'", "heads = 2\nposition = 'carope'",
                              "heads = 2\nposition = 'learned'\nmax_positions = 12\nwindow = 4"}) {
    torch::manual_seed(8);
    auto mixer = make(16, options);
    const Tensor prompt = torch::randn({2, 8, 16}), next = torch::randn({2, 3, 16});
    Pass pass;
    Tensor keep = torch::ones({2, 8}, torch::kBool);
    keep[1].narrow(0, 0, 5).fill_(false);  // row 1 has three tokens
    pass.layout = Layout::masked(keep);
    const Tensor starts = torch::tensor({0, 5}).unsqueeze(1);
    pass.positions = (torch::arange(8).unsqueeze(0) - starts).clamp_min(0);
    Memory memory = mixer->empty_memory(2);
    const Tensor first = mixer->extend(prompt, memory, pass);
    EXPECT_EQ(first[1].narrow(0, 0, 5).abs().max().item<double>(), 0) << "padding sees nothing";
    Memory alone = mixer->empty_memory(1);
    expect_close(first[1].narrow(0, 5, 3), mixer->extend(prompt[1].narrow(0, 5, 3).unsqueeze(0), alone)[0], 1e-5);
    for (int64_t t = 0; t < 3; ++t) {  // the mask is remembered
      Pass step;
      step.positions = 8 + t - starts;
      const Tensor y = mixer->extend(next.narrow(1, t, 1), memory, step);
      expect_close(y[1], mixer->extend(next[1].narrow(0, t, 1).unsqueeze(0), alone)[0], 1e-5, options);
    }
  }
}

TEST(Attention, AWindowBoundsTheMemoryAndGrowingIsInPlace) {
  const torch::NoGradGuard no_grad;
  auto windowed = make(8, "heads = 2\nwindow = 33"), full = make(8, "heads = 2");
  Memory ring = windowed->empty_memory(1), cache = full->empty_memory(1);
  int moves = 0;
  const void* place = nullptr;
  for (int64_t t = 0; t < 1000; ++t) {
    const Tensor x = torch::randn({1, 1, 8});
    windowed->extend(x, ring);
    full->extend(x, cache);
    moves += cache["k"].storage().data() != place ? 1 : 0;
    place = cache["k"].storage().data();
    EXPECT_LE(ring["k"].size(2), 32);
  }
  EXPECT_LE(ring.bytes(), 2 * 2 * 33 * 8 * 4);
  EXPECT_EQ(cache["k"].size(2), 1000);
  EXPECT_LE(moves, 8);
}

TEST(Attention, CaropePhasesStayExactOverLongStreams) {
  const torch::NoGradGuard no_grad;
  auto mixer = make(8, "heads = 1\nposition = 'carope'\nwindow = 4");
  const Tensor x = torch::randn({1, 20000, 8}), whole = mixer->forward(x);
  Memory memory = mixer->empty_memory(1);
  Tensor y;
  for (int64_t t = 0; t < 20000; t += 50) y = mixer->extend(x.narrow(1, t, 50), memory);
  expect_close(y, whole.narrow(1, 19950, 50), 1e-4);
  EXPECT_LT(memory["phase"].abs().max().item<double>(), 257);
}

TEST(Attention, PackedRowsReadTheirOwnContext) {
  torch::manual_seed(19);
  const torch::NoGradGuard no_grad;
  for (const char* position : {"none", "rope"}) {
    auto mixer = make(12, std::string("heads = 3\ncausal = false\nposition = '") + position + "'");
    const Tensor x = torch::randn({3, 5, 12}), context = torch::randn({3, 7, 12});
    const Tensor lengths = torch::tensor({2, 5, 4}), context_lengths = torch::tensor({7, 3, 0});
    const auto offsets = [](const Tensor& rows) {
      return torch::cat({torch::zeros({1}, torch::kInt64), rows.cumsum(0)});
    };
    const auto packed = [&](const Tensor& padded, const Tensor& rows) {
      return Layout::packed(offsets(rows)).pack(padded);
    };
    Pass pass;
    pass.context = context;
    pass.context_layout = Layout::padded(context_lengths);
    pass.layout = Layout::padded(lengths);
    const Tensor want = packed(mixer->forward(x, pass), lengths);
    pass.layout = Layout::packed(offsets(lengths));
    expect_close(mixer->forward(packed(x, lengths), pass), want);
    pass.context = packed(context, context_lengths);
    pass.context_layout = Layout::packed(offsets(context_lengths));
    expect_close(mixer->forward(packed(x, lengths), pass), want);
    pass.layout = Layout::packed(offsets(torch::tensor({2, 5})));
    EXPECT_THROW(mixer->forward(packed(x, lengths), pass), UsageError);
  }
}

TEST(Attention, PackedRowsTakeGivenPositions) {
  torch::manual_seed(20);
  const torch::NoGradGuard no_grad;
  auto mixer = make(12, "heads = 3\nposition = 'learned'\nmax_positions = 20");
  const Tensor x = torch::randn({1, 9, 12});
  Pass pass;
  pass.layout = Layout::packed(torch::tensor({0, 4, 9}));
  const Tensor y = mixer->forward(x, pass);
  pass.positions = torch::tensor({0, 1, 2, 3, 0, 1, 2, 3, 4}).unsqueeze(0);
  expect_close(mixer->forward(x, pass), y);
  pass.positions = pass.positions + 1;
  EXPECT_FALSE(torch::allclose(mixer->forward(x, pass), y));
}

TEST(Attention, ReadsAnotherSequence) {
  torch::manual_seed(9);
  const torch::NoGradGuard no_grad;
  auto mixer = make(12, "heads = 3\ncausal = false");
  const Tensor x = torch::randn({2, 5, 12}), context = torch::randn({2, 7, 12});
  Pass pass;
  pass.context = context;
  pass.context_layout = Layout::padded(torch::tensor({7, 0}));
  const Tensor y = mixer->forward(x, pass);
  EXPECT_EQ(y[1].abs().max().item<double>(), 0) << "a context without tokens gives nothing";
  Pass cut;
  cut.context = context.narrow(1, 0, 4);
  const Tensor shorter = mixer->forward(x, cut);
  pass.context_layout = Layout::padded(torch::tensor({4, 4}));
  expect_close(mixer->forward(x, pass), shorter);

  cut.context = context.narrow(1, 0, 0);
  EXPECT_EQ(mixer->forward(x, cut).abs().max().item<double>(), 0);
  for (const Tensor& wrong : {torch::randn({2, 7, 11}), torch::randn({1, 7, 12}), torch::randn({7})}) {
    cut.context = wrong;
    EXPECT_THROW(mixer->forward(x, cut), UsageError);
  }
  Pass causal;
  causal.context = context;
  EXPECT_THROW(make(12, "heads = 3")->forward(x, causal), UsageError);
}

TEST(Attention, ConstantInputStaysConstantUnlessUrpeBreaksTheRowSums) {
  torch::manual_seed(10);
  const torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({1, 1, 12}).expand({1, 20, 12});
  const auto spread = [&](Attention& mixer) {
    const Tensor y = mixer.forward(x);
    return (y - y.narrow(1, 0, 1)).abs().max().item<double>();
  };
  for (const char* scheme : {"rope", "alibi", "t5_bias", "urpe", "carope"}) {
    auto mixer = make(12, fmt::format("heads = 2\nposition = '{}'", scheme));
    EXPECT_LE(spread(*mixer), 1e-5) << scheme;
    if (std::string(scheme) != "urpe") continue;
    mixer->named_parameters()["urpe_c"].uniform_(-1, 1);
    EXPECT_GT(spread(*mixer), 1e-2);
  }
}

/// The message of the UsageError that these options give, "" for none.
std::string refusal(int64_t width, const std::string& options) {
  try {
    make(width, options);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Attention, RefusesWrongOptionsByName) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"heads = 5", "heads = 5"},
      {"heads = 4\nkv_heads = 3", "kv_heads = 3"},
      {"heads = 2\nwindow = 0", "window"},
      {"heads = 2\nwindow = 3\ncausal = false", "window = 3"},
      {"heads = 2\nposition = 'rope'\nrotary_dim = 3", "rotary_dim = 3"},
      {"heads = 2\nposition = 'rope'\nrotary_dim = 14", "rotary_dim = 14"},
      {"heads = 2\nposition = 'rope'\nhead_dim = 5", "rotary_dim = 5"},
      {"heads = 2\nposition = 'carope'\nhead_dim = 5", "head_dim"},
      {"heads = 2\nposition = 'carope'\nrope_scaling = { rope_type = 'linear', factor = 2.0 }", "rope_scaling"},
      {"heads = 2\nposition = 'rope'\nrope_scaling = { rope_type = 'yarn' }", "rope_type"},
      {"heads = 2\nposition = 't5_bias'\nnum_buckets = 7\ncausal = false", "num_buckets = 7"},
      {"heads = 2\nposition = 't5_bias'\nmax_distance = 16", "max_distance = 16"},
      {"heads = 2\nposition = 'somewhere'", "somewhere"},
      {"heads = 2\nhead_dim = 9000000000000000000", "head_dim"}};
  for (const auto& [options, named] : wrong) {
    EXPECT_NE(refusal(24, options).find(named), std::string::npos) << options << "\ngave: " << refusal(24, options);
  }
}

TEST(Attention, RefusesWhatDoesNotFitTheCall) {
  const torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({2, 6, 8});
  for (const char* scheme : {"learned", "urpe"}) {
    auto mixer = make(8, fmt::format("heads = 2\nmax_positions = 5\nposition = '{}'", scheme));
    EXPECT_THROW(mixer->forward(x), UsageError) << scheme;
    Memory memory = mixer->empty_memory(2);
    mixer->extend(x.narrow(1, 0, 5), memory);
    EXPECT_THROW(mixer->extend(x.narrow(1, 5, 1), memory), UsageError) << scheme;
    EXPECT_EQ(memory["k"].size(2), 5) << "a refused token is not remembered";
  }
  auto mixer = make(8, "heads = 2\nposition = 'rope'");
  Pass pass;
  pass.layout = Layout::masked(torch::ones({2, 5}, torch::kBool));
  EXPECT_THROW(mixer->forward(x, pass), UsageError);
  Pass placed;
  placed.positions = torch::arange(6);
  EXPECT_THROW(mixer->forward(x, placed), UsageError);
  Memory other_batch = mixer->empty_memory(3);
  EXPECT_THROW(mixer->extend(x, other_batch), UsageError);
  Memory uneven = mixer->empty_memory(2);
  mixer->extend(x, uneven);
  uneven["v"] = uneven["v"].narrow(2, 0, 4);
  EXPECT_THROW(mixer->extend(x, uneven), UsageError);
}

TEST(Attention, OptionsOfACaseFollowItsParameters) {
  const std::map<std::string, std::vector<int64_t>> shapes = {
      {"q_proj.weight", {20, 8}}, {"q_proj.bias", {20}}, {"o_proj.weight", {8, 20}}, {"urpe_c", {2, 29}}};
  const Config config = Attention::from_case({{"heads", 2}, {"cross", true}}, shapes);
  EXPECT_EQ(config["head_dim"], 10);
  EXPECT_EQ(config["qkv_bias"], true);
  EXPECT_EQ(config["o_bias"], false);
  EXPECT_EQ(config["max_positions"], 15);
  EXPECT_FALSE(config.contains("cross"));
}

}  // namespace
}  // namespace seqloom
