// Memory Caching beyond the laws: what it is equal to, and what it refuses.
#include "mixers/memory_caching.h"

#include <gtest/gtest.h>

#include "io/toml.h"
#include "support/compare.h"

namespace seqloom {
namespace {

std::shared_ptr<CausalMixer> make(const std::string& options, const std::string& kind = "memory_caching") {
  Config table = parse_toml(options, "test");
  table["kind"] = kind;
  return std::dynamic_pointer_cast<CausalMixer>(make_mixer(8, table, "test"));
}

/// The parameters of `from` under `prefix` for the equally named ones of `to`.
void copy_parameters(torch::nn::Module& from, const std::string& prefix, torch::nn::Module& to) {
  const torch::NoGradGuard no_grad;
  const auto all = from.named_parameters();
  for (auto& parameter : to.named_parameters()) {
    if (const Tensor* value = all.find(prefix + parameter.key())) parameter.value().copy_(*value);
  }
}

std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(MemoryCaching, SoupOfLinearMemoriesIsGatedReads) {
  const std::string common = "heads = 2\nsegment = 4\nmemory = 'swla'\nbeta = 0.2\nretain = 0.9\naggregate = ";
  const auto grm = make(common + "'grm'"), soup = make(common + "'soup'");
  copy_parameters(*grm, "", *soup);
  const Tensor x = torch::randn({2, 15, 8});
  expect_near(soup->forward(x), grm->forward(x), 1e-5, "soup");
}

TEST(MemoryCaching, SoupOfMatricesTrainedInChunksIsGatedReads) {
  for (const char* init : {"restart", "checkpoint"}) {
    const std::string common = std::string("heads = 2\nsegment = 8\nmemory = 'titans'\nmemory_depth = 1\nchunk = 3\n") +
                               "retain = 0.9\nlr = 0.05\nsegment_init = '" + init + "'\naggregate = ";
    const auto grm = make(common + "'grm'"), soup = make(common + "'soup'");
    copy_parameters(*grm, "", *soup);
    const Tensor x = torch::randn({2, 30, 8});
    expect_near(soup->forward(x), grm->forward(x), 1e-5, init);
  }
}

TEST(MemoryCaching, DeepMemoriesStayFiniteByDefault) {
  torch::manual_seed(7);
  const torch::NoGradGuard no_grad;
  for (const char* memory : {"dla", "titans"}) {
    for (const char* init : {"restart", "checkpoint"}) {
      Config table = parse_toml(std::string("memory = '") + memory + "'\nsegment_init = '" + init + "'", "test");
      table["kind"] = "memory_caching";
      const Tensor y = make_mixer(256, table, "test")->forward(torch::randn({1, 512, 256}));
      EXPECT_LT(y.abs().max().item<double>(), 1e3) << memory << ", " << init;
    }
  }
}

TEST(MemoryCaching, EnoughTopKIsGatedReads) {
  for (const char* memory : {"linear", "titans"}) {
    const std::string common = std::string("heads = 2\nsegment = 4\nmemory = '") + memory + "'\naggregate = ";
    const auto grm = make(common + "'grm'"), ssc = make(common + "'ssc'\ntop_k = 3");
    copy_parameters(*grm, "", *ssc);
    const Tensor x = torch::randn({2, 15, 8});
    expect_near(ssc->forward(x), grm->forward(x), 1e-5, memory);
  }
}

TEST(MemoryCaching, PaddingAnywhereInAStreamLeavesNoTrace) {
  torch::manual_seed(5);
  const torch::NoGradGuard no_grad;
  for (const char* options :
       {"memory = 'linear'\nretain = 0.8", "memory = 'swla'\nbeta = 0.4\nsegment_init = 'checkpoint'\nretain = 0.9",
        "memory = 'titans'\nresidual = true", "memory = 'dla'\naggregate = 'soup'\nsegment_init = 'checkpoint'",
        "memory = 'linear'\nmax_caches = 2", "memory = 'titans'\naggregate = 'ssc'\ncontext = 'sum_key'"}) {
    const auto mixer = make(std::string("heads = 2\nsegment = 3\n") + options);
    const Tensor x = torch::randn({2, 23, 8}), keep = torch::rand({2, 23}) < 0.6;
    Memory stream = mixer->empty_memory(2);
    std::vector<Tensor> outputs;
    int64_t begin = 0;
    for (const int64_t size : {5, 1, 1, 8, 8}) {
      Pass pass;
      pass.layout = Layout::masked(keep.narrow(1, begin, size));
      outputs.push_back(mixer->extend(x.narrow(1, begin, size), stream, pass));
      begin += size;
    }
    const Tensor y = torch::cat(outputs, 1);
    for (int64_t b = 0; b < 2; ++b) {
      const Tensor real = keep[b].nonzero().squeeze(1);
      expect_near(y[b].index_select(0, real), mixer->forward(x.narrow(0, b, 1).index_select(1, real))[0], 1e-4,
                  options);
    }
  }
}

TEST(MemoryCaching, OfAMixerIsItsOwnDefinition) {
  torch::manual_seed(2);
  const torch::NoGradGuard no_grad;
  for (const char* init : {"restart", "checkpoint"}) {
    const auto cached =
        make(std::string("of = { kind = 'gla', heads = 2 }\nsegment = 4\nsegment_init = '") + init + "'");
    const auto gla = make("heads = 2", "gla");
    copy_parameters(*cached, "of.", *gla);
    const Tensor W = cached->named_parameters()["u_proj.weight"], x = torch::randn({2, 14, 8});

    std::vector<Memory> caches;
    std::vector<Tensor> contexts, outputs;
    Memory running = gla->empty_memory(2);
    Tensor pool = torch::zeros({2, 8});
    for (int64_t t = 0; t < 14; ++t) {
      if (t % 4 == 0) pool = torch::zeros({2, 8});
      if (t % 4 == 0 && std::string(init) == "restart") running = gla->empty_memory(2);
      const Tensor now = x.narrow(1, t, 1);
      pool = pool + x.select(1, t);
      std::vector<Tensor> reads, scores;
      const Tensor u = torch::matmul(x.select(1, t), W.t());
      for (size_t i = 0; i < caches.size(); ++i) {
        Memory copy = caches[i].clone();
        reads.push_back(gla->extend(now, copy).squeeze(1));
        scores.push_back((u * contexts[i]).sum(-1));
      }
      reads.push_back(gla->extend(now, running).squeeze(1));
      const Tensor context = pool / static_cast<double>(t % 4 + 1);
      scores.push_back((u * context).sum(-1));
      const Tensor g = torch::stack(scores, -1).softmax(-1);
      outputs.push_back((torch::stack(reads, 1) * g.unsqueeze(-1)).sum(1));
      if (t % 4 == 3) {
        caches.push_back(running.clone());
        contexts.push_back(context);
      }
    }
    expect_near(cached->forward(x), torch::stack(outputs, 1), 1e-5, init);
  }
}

TEST(MemoryCaching, OfAMixerSoupOfLinearMemoriesIsGatedReads) {
  const std::string common =
      "of = { kind = 'linear_attention', heads = 2, normalize = false }\nsegment = 4\naggregate = ";
  const auto grm = make(common + "'grm'"), soup = make(common + "'soup'");
  copy_parameters(*grm, "", *soup);
  const Tensor x = torch::randn({2, 15, 8});
  expect_near(soup->forward(x), grm->forward(x), 1e-5, "soup");
}

TEST(MemoryCaching, MeanOfALinearMemoryIsTheMeanByHand) {
  torch::manual_seed(6);
  const torch::NoGradGuard no_grad;
  const auto cached = make(
      "of = { kind = 'linear_attention', heads = 1, normalize = false, feature_map = 'identity' }\nsegment = 4\n"
      "aggregate = 'mean'");
  auto parameters = cached->named_parameters();
  EXPECT_EQ(parameters.find("u_proj.weight"), nullptr) << "it serves a mixer that was trained without caches";
  const Tensor x = torch::randn({11, 8});
  const auto projected = [&](const char* name) {
    return torch::matmul(x, parameters[std::string("of.") + name + "_proj.weight"].t());
  };
  const Tensor q = projected("q"), k = projected("k"), v = projected("v");
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < 11; ++t) {
    const Tensor written = torch::outer(k[t], v[t]);  // what t adds to whichever memory it is read with
    Tensor sum = torch::zeros({8}), memory = torch::zeros({8, 8});
    for (int64_t s = 0; s <= t; ++s) {
      if (s % 4 == 0) memory = torch::zeros({8, 8});
      memory = memory + torch::outer(k[s], v[s]);
      if (s % 4 == 3 && s < t) sum = sum + torch::matmul(q[t], memory + written);
    }
    sum = sum + torch::matmul(q[t], memory);
    const auto kept = static_cast<double>(t / 4);
    outputs.push_back(torch::matmul(parameters["of.o_proj.weight"], sum / (kept + 1)));
  }
  expect_near(cached->forward(x.unsqueeze(0))[0], torch::stack(outputs), 1e-5, "mean");
}

TEST(MemoryCaching, OfADeepMemoryGoesOnInsideItsChunks) {
  torch::manual_seed(4);
  const torch::NoGradGuard no_grad;
  const auto cached = make("of = { kind = 'titans', heads = 2, chunk = 3 }\nsegment = 5");
  const Tensor x = torch::randn({2, 17, 8});
  Memory memory = cached->empty_memory(2);
  std::vector<Tensor> outputs;
  for (int64_t t = 0; t < 17; ++t) outputs.push_back(cached->extend(x.narrow(1, t, 1), memory));
  expect_near(torch::cat(outputs, 1), cached->forward(x), 1e-4, "token by token");
}

TEST(MemoryCaching, Refuses) {
  EXPECT_NE(refusal([] { make("of = { kind = 'attention' }"); }).find("grows with the tokens"), std::string::npos);
  EXPECT_NE(refusal([] { make("of = { kind = 'linear_attention', causal = false }"); }).find("not causal"),
            std::string::npos);
  EXPECT_NE(refusal([] { make("of = { kind = 'gla' }\nretain = 0.5"); }).find("retain"), std::string::npos);

  const auto logarithmic = make("heads = 2\nsegmentation = 'logarithmic'");
  const Tensor x = torch::randn({1, 13, 8});
  Memory memory = logarithmic->empty_memory(1);
  logarithmic->extend(x, memory);
  EXPECT_EQ(memory.at("context").size(2), 3);  // 8 + 4 + 1
  EXPECT_NE(refusal([&] { logarithmic->extend(x, memory); }).find("segmentation"), std::string::npos);

  const auto costly = make("heads = 1\nsegment = 1\nmax_cache_mib = 1");
  EXPECT_NE(refusal([&] { costly->forward(torch::randn({1, 5000, 8})); }).find("max_cache_mib"), std::string::npos);
}

}  // namespace
}  // namespace seqloom
