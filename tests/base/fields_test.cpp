#include "base/fields.h"

#include <gtest/gtest.h>

#include "base/registry.h"

namespace seqloom {
namespace {

struct Options {
  int64_t heads = 4;
  double decay = 0.5;
  bool causal = true;
  std::string position = "none";
  std::optional<int64_t> window;
  std::vector<double> betas = {0.9};

  void describe(Fields& f) {
    f.add("heads", heads, "number of heads").at_least(1).also("num_heads");
    f.add("decay", decay, "forgetting").greater_than(0).less_than(1);
    f.add("causal", causal, "no look ahead");
    f.add("position", position, "scheme").one_of({"none", "rope"});
    f.add("window", window, "keys seen").at_least(1);
    f.add("betas", betas, "momenta").at_least(0);
  }
};

/// The message of the UsageError that reading `table` gives.
std::string error_of(const Config& table) {
  try {
    read_options<Options>(table, "r.toml: model.mixer");
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Fields, ReadsValuesAndKeepsDefaults) {
  const auto o =
      read_options<Options>({{"num_heads", 8}, {"window", 16}, {"position", "rope"}, {"decay", 0.25}}, "here");
  EXPECT_EQ(o.heads, 8);
  EXPECT_EQ(o.window, 16);
  EXPECT_EQ(o.position, "rope");
  EXPECT_EQ(o.decay, 0.25);
  EXPECT_TRUE(o.causal);
  EXPECT_FALSE(read_options<Options>({{"window", "none"}}, "here").window.has_value());
  EXPECT_FALSE(read_options<Options>({{"window", nullptr}}, "here").window.has_value());
}

TEST(Fields, WritesWhatItReads) {
  const Config written = write_options(read_options<Options>({{"heads", 2}, {"window", 5}}, "here"));
  EXPECT_EQ(write_options(read_options<Options>(written, "here")), written);
}

TEST(Fields, ErrorsNamePlaceKeyValueAndExpectation) {
  EXPECT_EQ(error_of({{"heads", 0}}), "r.toml: model.mixer.heads = 0: expected a value >= 1 (number of heads)");
  EXPECT_EQ(error_of({{"heads", "four"}}), "r.toml: model.mixer.heads = \"four\": expected an integer");
  EXPECT_EQ(error_of({{"heads", 2.5}}), "r.toml: model.mixer.heads = 2.5: expected an integer");
  EXPECT_EQ(error_of({{"decay", 1.0}}), "r.toml: model.mixer.decay = 1: expected a value > 0 and < 1 (forgetting)");
  EXPECT_EQ(error_of({{"causal", 1}}), "r.toml: model.mixer.causal = 1: expected true or false");
  EXPECT_EQ(error_of({{"position", "ropes"}}), "r.toml: model.mixer.position = \"ropes\": expected one of none, rope");
  EXPECT_EQ(error_of({{"betas", Config::array({0.5, -1})}}),
            "r.toml: model.mixer.betas = -1: expected a value >= 0 (momenta)");
  EXPECT_EQ(error_of(Config::array()), "r.toml: model.mixer = []: expected a table");
  EXPECT_NE(error_of({{"head", 3}}).find("did you mean 'heads'?"), std::string::npos);
  EXPECT_NE(error_of({{"heads", 18446744073709551615ULL}}).find("63 bits"), std::string::npos);
}

TEST(Registry, UnknownNamesSuggestTheNearest) {
  Registry<int> registry("mixer");
  registry.add("attention", 1);
  registry.add("mamba", 2);
  EXPECT_EQ(registry.get("mamba"), 2);
  try {
    registry.get("atention");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_STREQ(error.what(), "there is no mixer 'atention', did you mean 'attention'?; there are: attention, mamba");
  }
  EXPECT_EQ(nearest("zzzzzz", registry.names()), "");
}

}  // namespace
}  // namespace seqloom
