// Bodies of /v1/embeddings and the shape of their answers.
#include "serve/embeddings.h"

#include <gtest/gtest.h>

#include <map>

#include "serve/errors.h"

namespace seqloom {
namespace {

TEST(Embeddings, ReadsTextsAndRefusesByName) {
  EXPECT_EQ(parse_embedding(R"({"input": "a", "model": "m"})", 3).texts, std::vector<std::string>{"a"});
  const auto several = parse_embedding(R"({"input": ["a", ""], "encoding_format": "base64", "dimensions": 3})", 3);
  EXPECT_EQ(several.texts, (std::vector<std::string>{"a", ""}));
  EXPECT_TRUE(several.base64);
  std::string many = R"({"input": ["a")";
  for (int i = 0; i < 2048; ++i) many += R"(,"a")";
  for (const auto& [body, param] :
       std::map<std::string, std::string>{{R"({})", "input"},
                                          {R"({"input": []})", "input"},
                                          {R"({"input": [1, 2]})", "input"},
                                          {R"({"input": {}})", "input"},
                                          {many + "]}", "input"},
                                          {R"({"input": "a", "dimensions": 2})", "dimensions"},
                                          {R"({"input": "a", "encoding_format": "x"})", "encoding_format"}}) {
    try {
      parse_embedding(body, 3);
      ADD_FAILURE() << body.substr(0, 80);
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status, 400);
      EXPECT_EQ(error.param, param);
    }
  }
}

TEST(Embeddings, WritesOpenAisShape) {
  const Tensor vectors = torch::tensor({{1.0F, -2.5F}, {0.0F, 3.0F}});
  const auto plain = nlohmann::json::parse(embedding_reply(vectors, false, "m", 7).body);
  EXPECT_EQ(plain["data"][0]["embedding"], (std::vector<float>{1.0F, -2.5F}));
  EXPECT_EQ(plain["data"][1]["index"], 1);
  EXPECT_EQ(plain["usage"]["prompt_tokens"], 7);
  const auto packed = nlohmann::json::parse(embedding_reply(vectors, true, "m", 7).body);
  EXPECT_EQ(packed["data"][0]["embedding"], "AACAPwAAIMA=") << "Python: b64encode(struct.pack('<2f', 1, -2.5))";
  const auto one = nlohmann::json::parse(embedding_reply(torch::ones({1, 1}), true, "m", 7).body);
  EXPECT_EQ(one["data"][0]["embedding"], "AACAPw==");
  const auto three = nlohmann::json::parse(embedding_reply(torch::ones({1, 3}), true, "m", 7).body);
  EXPECT_EQ(three["data"][0]["embedding"], "AACAPwAAgD8AAIA/");
}

}  // namespace
}  // namespace seqloom
