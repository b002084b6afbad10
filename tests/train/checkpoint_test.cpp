// Checkpoints that are used: mapped, in other formats, and such as lie.
#include "train/checkpoint.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"
#include "io/temporary_folder.h"
#include "io/toml.h"
#include "models/decoder.h"
#include "support/compare.h"

namespace seqloom {
namespace {

constexpr const char* kModel =
    "width = 32\nlayers = [{ mixer = { kind = 'mamba', state = 4 }, channel = { kind = 'swiglu' } }, "
    "{ mixer = { kind = 'attention', heads = 2 } }]";

std::shared_ptr<Decoder> model() {
  return std::make_shared<Decoder>(40, parse_toml(kModel, "test"), "test: model");
}

Tensor logits(Decoder& decoder) {
  const torch::NoGradGuard no_grad;
  Pass pass;
  return decoder.logits(decoder.hidden(torch::arange(20).view({1, 20}), pass));
}

class CheckpointFormats : public testing::Test {
 protected:
  /// A checkpoint of a model kept in a format, whose tensors `change` may spoil.
  Checkpoint save(Decoder& decoder, const WeightFormat& format, const std::function<void(TensorMap&)>& change = {}) {
    Checkpoint checkpoint;
    checkpoint.path = folder.file("c.safetensors");
    checkpoint.recipe = Config::object();
    checkpoint.weights = format;
    if (format != WeightFormat()) decoder.store_as(format);
    save_checkpoint(checkpoint, decoder, {});
    if (change) {
      const Safetensors file(checkpoint.path);
      TensorMap tensors = file.load_all();
      change(tensors);
      save_safetensors(checkpoint.path, tensors, file.metadata());
    }
    return open_checkpoint(checkpoint.path);
  }

  TemporaryFolder folder;
};

TEST_F(CheckpointFormats, AMappedModelIsTheSavedOne) {
  for (const WeightFormat& format : {WeightFormat(), WeightFormat{"bfloat16", 0}, {"int8", 0}, {"int8", 16}}) {
    torch::manual_seed(1);
    const auto saved = model();
    const Checkpoint checkpoint = save(*saved, format);
    EXPECT_EQ(checkpoint.weights, format);
    const auto mapped = [] {
      const WithoutInitialisation about_to_be_mapped;
      return model();
    }();
    map_model(checkpoint, *mapped);
    EXPECT_TRUE(logits(*mapped).equal(logits(*saved))) << format.type;
    for (const auto& parameter : mapped->parameters()) EXPECT_FALSE(parameter.requires_grad());
    EXPECT_EQ(mapped->parameter_count(), saved->parameter_count());
  }
}

TEST_F(CheckpointFormats, Bfloat16MatricesAreTrainedAsFloat32AndInt8OnesAreRefused) {
  torch::manual_seed(2);
  const auto saved = model();
  const Tensor exact = logits(*saved);
  const Checkpoint narrow = save(*saved, {"bfloat16", 0});
  const auto trained = model();
  load_model(narrow, *trained);
  expect_near(logits(*trained), exact, 0.02, "widened");
  EXPECT_EQ(trained->output_weight().scalar_type(), torch::kFloat32);
  EXPECT_TRUE(trained->output_weight().requires_grad());
  const Checkpoint int8 = save(*model(), {"int8", 0});
  EXPECT_ERROR(load_model(int8, *model()), "its weights are int8, which cannot be trained");
  EXPECT_NE(fingerprint(int8), fingerprint(narrow));
}

TEST_F(CheckpointFormats, LiesAreNamed) {
  const std::string weight = "model.layers.1.mixer.q_proj.weight", scale = "model.layers.1.mixer.q_proj.scale";
  const auto mapped = [&](const std::function<void(TensorMap&)>& change) {
    const Checkpoint checkpoint = save(*model(), {"int8", 16}, change);
    map_model(checkpoint, *model());
  };
  EXPECT_ERROR(mapped([&](TensorMap& t) { t.erase(scale); }), "is int8 and '" + scale + "' is missing");
  EXPECT_ERROR(mapped([&](TensorMap& t) { t[scale] = torch::ones({32, 3}); }), "groups that divide 32");
  EXPECT_ERROR(mapped([&](TensorMap& t) { t[scale] = torch::ones({31, 2}); }), "expected F32 [32, groups]");
  EXPECT_ERROR(mapped([&](TensorMap& t) { t[scale] = t[scale].to(torch::kFloat64); }), "expected F32");
  EXPECT_ERROR(mapped([&](TensorMap& t) { t[weight] = t[weight].narrow(0, 0, 31); }), "the model has [32, 32]");
  EXPECT_ERROR(mapped([&](TensorMap& t) { t[weight] = t[weight].to(torch::kInt32); }), "is I32, the model has Float");
  EXPECT_ERROR(mapped([&](TensorMap& t) { t.erase(weight); }), "is missing");
  EXPECT_ERROR(mapped([&](TensorMap& t) { t["model.more"] = torch::ones({1}); }), "'model.more' is unknown");
  const std::string raw = "model.layers.0.mixer.dt_proj.weight";  // stays floating
  EXPECT_ERROR(mapped([&](TensorMap& t) { t[raw] = t[raw].to(torch::kInt8); }), "is I8, the model has Float");
  EXPECT_NO_THROW(mapped([&](TensorMap& t) { t[raw] = t[raw].to(torch::kBFloat16); }));
}

}  // namespace
}  // namespace seqloom
