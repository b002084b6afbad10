// JSON from untrusted text.
#include "io/json.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"

namespace seqloom {
namespace {

TEST(Json, ReadsWhatTheLibraryReads) {
  for (const char* text : {R"({"a": [1, -2, 3.5, true, null, "x"], "b": {"c": {}, "d": []}, "": "é\n"})", "[]", "17"}) {
    EXPECT_EQ(parse_json(text, "file"), Config::parse(text)) << text;
  }
}

TEST(Json, RefusesWhatIsNotJson) {
  EXPECT_ERROR(parse_json("", "file.json"), "file.json: not valid JSON: parse error at line 1");
  EXPECT_ERROR(parse_json("{\"a\": 1,}", "file"), "not valid JSON");
  EXPECT_ERROR(parse_json("{} {}", "file"), "not valid JSON");
  EXPECT_ERROR(parse_json("\"\xff\"", "file"), "not valid JSON");
  EXPECT_ERROR(parse_json("\"\\ud800\"", "file"), "not valid JSON");
  EXPECT_ERROR(parse_json("1e999", "file"), "not valid JSON");
  EXPECT_LT(error_of([] { parse_json("\"" + std::string(100'000, 'x'), "file"); }).size(), 400U);
}

TEST(Json, RefusesTwoEqualKeys) {
  EXPECT_ERROR(parse_json(R"({"a": 1, "b": {"a": 2}, "a\u0000": 3, "a": 4})", "file"),
               "file: the key 'a' occurs twice");
  EXPECT_ERROR(parse_json(R"({"x\n": 1, "x\n": 1})", "file"), R"(the key 'x\x0a' occurs twice)");
}

TEST(Json, BoundsTheDepth) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(parse_json(nested(64), "file").size(), 1U);
  EXPECT_ERROR(parse_json(nested(65), "file"), "nested deeper than 64");
  EXPECT_ERROR(parse_json(std::string(1'000'000, '['), "file"), "nested deeper than 64");
}

TEST(Json, ManyTablesTakeLinearTime) {
  std::string text = "[{}";
  for (int i = 0; i < 200'000; ++i) text += ",{}";
  EXPECT_EQ(parse_json(text + "]", "file").size(), 200'001U);
}

TEST(OrderedJson, KeepsTheOrderAndBoundsTheKeys) {
  const std::string text = R"({"z":1,"a":{"c":[1,2],"b":null}})";
  EXPECT_EQ(parse_ordered_json(text, "file").dump(), text);
  EXPECT_ERROR(parse_ordered_json(R"({"a":1,"a":1})", "file"), "the key 'a' occurs twice");
  std::string many = "{\"k\":0";
  for (int i = 0; i < 512; ++i) many += ",\"k" + std::to_string(i) + "\":0";
  EXPECT_ERROR(parse_ordered_json(many + "}", "file"), "more than 512 keys");
}

TEST(Printable, IsOneShortLineOfUtf8) {
  EXPECT_EQ(printable("a\n\x7f\xff é"), "a\\x0a\\x7f\\xff é");
  EXPECT_EQ(printable(std::string(100, 'a')), std::string(80, 'a') + "...");
}

}  // namespace
}  // namespace seqloom
