// Recipes: TOML to a configuration tree, --set, and variants laid over a base.
#include "io/toml.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"
#include "io/temporary_folder.h"

namespace seqloom {
namespace {

Config tree(const char* json) {
  return Config::parse(json);
}

Config with(Config config, const std::string& assignment) {
  set_key(config, assignment);
  return config;
}

TEST(Toml, ReadsTables) {
  const Config recipe = parse_toml(
      "[model]\nwidth = 256\nrate = 1e-3\nlayers = [{ repeat = 3, a.b = true }, {}]\n"
      "[[variant]]\nname = 'é'\n[[variant]]\n",
      "r.toml");
  EXPECT_EQ(recipe, tree(R"({"model": {"width": 256, "rate": 1e-3, "layers": [{"repeat": 3, "a": {"b": true}}, {}]},
                             "variant": [{"name": "é"}, {}]})"));
  EXPECT_EQ(parse_toml("", "r.toml"), Config::object());
}

TEST(Toml, ErrorsNameFileLineAndColumn) {
  EXPECT_ERROR(parse_toml("a = 1\nb = = 2\n", "r.toml"), "r.toml:2:5: ");
  EXPECT_ERROR(parse_toml("a = 1\na = 2\n", "r.toml"), "r.toml:2:");
  EXPECT_ERROR(parse_toml("a = [1,\n  2020-01-02]", "r.toml"), "r.toml:2:3: dates and times");
  EXPECT_ERROR(parse_toml("a = 10:00:00", "r.toml"), "dates and times");
  EXPECT_ERROR(parse_toml("a = nan", "r.toml"), "r.toml:1:5: expected a finite number");
  EXPECT_ERROR(parse_toml("a = -inf", "r.toml"), "expected a finite number");
  EXPECT_ERROR(parse_toml("a = 99999999999999999999", "r.toml"), "r.toml:1:");
  EXPECT_ERROR(parse_toml("a = '\xff'", "r.toml"), "r.toml:1:");
}

TEST(Toml, LoadsFiles) {
  const TemporaryFolder folder;
  EXPECT_EQ(load_toml(folder.make("a.toml", "x = 1")), tree(R"({"x": 1})"));
  EXPECT_ERROR(load_toml(folder.make("b.toml", "x = ")), "b.toml:1:");
  EXPECT_ERROR(load_toml(folder.file("c.toml")), "c.toml: cannot be opened");
  EXPECT_ERROR(load_toml(folder.make("d.toml", std::string((10 << 20) + 1, '\n'))), "over the limit");
}

std::string repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(Toml, BoundsTheDepth) {
  EXPECT_ERROR(parse_toml("x = " + repeated("[", 1'000'000), "r"), "r:1:");
  EXPECT_ERROR(parse_toml("x = " + repeated("[", 100) + repeated("]", 100), "r"), "nested deeper than 64");
  EXPECT_ERROR(parse_toml("\n" + repeated("a.", 1'000'000) + "a = 1", "r"), "r:2: a key of more than 16 parts");
  EXPECT_ERROR(parse_toml("[" + repeated("'a' . ", 1'000'000) + "a]", "r"), "a key of more than 16 parts");
  EXPECT_ERROR(parse_toml("x = ['''''a''''', " + repeated("{ a.b.c.d = ", 250), "r"), "r:1:");
  EXPECT_EQ(parse_toml(repeated("a.", 15) + "a = 1", "r").size(), 1U);
}

TEST(Toml, DotsInStringsAndCommentsAreNoKeys) {
  const std::string dots(100, '.');
  EXPECT_EQ(parse_toml("a = \"\\\"" + dots + "\" # " + dots + "\nb = '''\n'" + dots + "'''''\nc = [1.5, 2.5]", "r"),
            (Config{{"a", "\"" + dots}, {"b", "'" + dots + "''"}, {"c", {1.5, 2.5}}}));
}

TEST(SetKey, ReadsTheValueAsToml) {
  EXPECT_EQ(with({}, "a.b=3"), tree(R"({"a": {"b": 3}})"));
  EXPECT_EQ(with({}, "a=3.5"), tree(R"({"a": 3.5})"));
  EXPECT_EQ(with({}, "a=true"), tree(R"({"a": true})"));
  EXPECT_EQ(with({}, "a=[1, {b = 2}]"), tree(R"({"a": [1, {"b": 2}]})"));
  EXPECT_EQ(with({}, "a='quoted'"), tree(R"({"a": "quoted"})"));
}

TEST(SetKey, TakesAnythingElseAsText) {
  EXPECT_EQ(with({}, "a=mamba"), tree(R"({"a": "mamba"})"));
  EXPECT_EQ(with({}, "a="), tree(R"({"a": ""})"));
  EXPECT_EQ(with({}, "a=b=c"), tree(R"({"a": "b=c"})"));
  EXPECT_EQ(with({}, "a=1\nb = 2"), tree(R"({"a": "1\nb = 2"})"));
}

TEST(SetKey, GoesIntoLists) {
  const Config base = tree(R"({"layers": [{"kind": "gla"}, {"kind": "mamba"}]})");
  EXPECT_EQ(with(base, "layers.1.kind=attention")["layers"][1]["kind"], "attention");
  EXPECT_EQ(with(base, "layers.0=7")["layers"][0], 7);
  EXPECT_MISUSE(with(base, "layers.2=7"), "--set layers.2=7: '2' is not an element of a list of 2");
  EXPECT_MISUSE(with(base, "layers.-1=7"), "'-1' is not an element");
  EXPECT_MISUSE(with(base, "layers.1x=7"), "'1x' is not an element");
}

TEST(SetKey, ErrorsNameTheAssignment) {
  EXPECT_MISUSE(with({}, "abc"), "--set abc: expected key=value");
  EXPECT_MISUSE(with({}, "=3"), "expected key=value");
  EXPECT_MISUSE(with({}, "a..b=3"), "--set a..b=3: the key 'a..b' has an empty part");
  EXPECT_MISUSE(with({}, "a.=3"), "empty part");
  EXPECT_MISUSE(with({{"a", 1}}, "a.b=3"), "'b' is inside 1, which is not a table");
  EXPECT_MISUSE(with({}, "a=\xff"), "is not UTF-8");
  EXPECT_MISUSE(with({}, repeated("a.", 100'000) + "a=1"), "more than 16 parts");
}

TEST(Merge, TablesMergeAndAllElseReplaces) {
  const Config base = tree(R"({"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": {"z": 0}})");
  const Config over = tree(R"({"a": {"y": [3], "w": 4}, "b": {"n": 1}, "c": 5, "d": {}})");
  EXPECT_EQ(merge(base, over), tree(R"({"a": {"x": 1, "y": [3], "w": 4}, "b": {"n": 1}, "c": 5, "d": {}})"));
  EXPECT_EQ(merge(base, Config::object()), base);
}

}  // namespace
}  // namespace seqloom
