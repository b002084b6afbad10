// Bodies of requests: what is read, and what is refused by name.
#include "serve/completion_request.h"

#include <gtest/gtest.h>

#include "serve/errors.h"

namespace seqloom {
namespace {

CompletionRequest parsed(const std::string& body, Route route = Route::kCompletion) {
  return parse_completion(body, route, {.max_tokens = 100, .default_tokens = 20, .choices = 8});
}

/// The parameter that an error names, and its status.
std::string refused(const std::string& body, Route route = Route::kCompletion) {
  try {
    parsed(body, route);
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400);
    return error.param.empty() ? error.what() : error.param;
  }
  return "nothing was refused";
}

TEST(CompletionRequest, ReadsWhatClientsSend) {
  const auto request =
      parsed(R"({"model": "m", "prompt": "é", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
      "min_p": 0.1, "seed": 11, "stop": "x", "n": 2, "echo": true, "stream": true, "stream_options": {"include_usage": true},
      "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": null, "user": "somebody", "keep_state": true})");
  EXPECT_EQ(std::get<std::string>(request.prompts.at(0)), "é");
  EXPECT_EQ(request.max_tokens, 7);
  EXPECT_EQ(request.sampler.temperature, 0.5);
  EXPECT_EQ(request.sampler.top_k, 3);
  EXPECT_EQ(request.sampler.seed, 11);
  EXPECT_EQ(request.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(request.choices(), 2);
  EXPECT_TRUE(request.echo && request.stream && request.include_usage && request.keep_state);
  EXPECT_EQ(parsed(R"({"prompt": "a"})").max_tokens, 20);
  EXPECT_EQ(parsed(R"({"prompt": [[1, 2], "b"]})").prompts.size(), 2U);
  EXPECT_EQ(std::get<std::vector<int64_t>>(parsed(R"({"prompt": [1, 2]})").prompts.at(0)),
            (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(parsed(R"({"state": "state-0"})").state, "state-0");
  EXPECT_NE(parsed(R"({"prompt": "a"})").sampler.seed, parsed(R"({"prompt": "a"})").sampler.seed);
}

TEST(CompletionRequest, ReadsChats) {
  const auto request = parsed(
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "tools": [{"z": 1, "a": 2}], "max_completion_tokens": 9, "chat_template_kwargs": {"k": true}, "logprobs": false})",
      Route::kChat);
  EXPECT_EQ(request.messages[0]["content"], "ab");
  EXPECT_EQ(request.tools.dump(), R"([{"z":1,"a":2}])") << "in the order of the text, as templates print it";
  EXPECT_EQ(request.max_tokens, 9);
  EXPECT_EQ(request.template_variables["k"], true);
}

TEST(CompletionRequest, RefusesByName) {
  for (const auto& [body, param] : std::map<std::string, std::string>{
           {R"({})", "prompt"},
           {R"({"prompt": ""  , "n": 9})", "n"},
           {R"({"prompt": ["a", "b", "c"], "n": 3})", "n"},
           {R"({"prompt": []})", "prompt"},
           {R"({"prompt": [-1]})", "prompt"},
           {R"({"prompt": [4294967296]})", "prompt"},
           {R"({"prompt": "a", "max_tokens": 101})", "max_tokens"},
           {R"({"prompt": "a", "max_tokens": 18446744073709551615})", "max_tokens"},
           {R"({"prompt": "a", "temperature": []})", "temperature"},
           {R"({"prompt": "a", "seed": -1})", "seed"},
           {R"({"prompt": "a", "stop": [1]})", "stop"},
           {R"({"prompt": "a", "presence_penalty": 0.1})", "presence_penalty"},
           {R"({"prompt": "a", "logprobs": 1})", "logprobs"},
           {R"({"prompt": "a", "best_of": 2})", "best_of"},
           {R"({"prompt": "a", "stream_options": 1})", "stream_options"},
       }) {
    EXPECT_EQ(refused(body), param) << body;
  }
  EXPECT_EQ(refused(R"({"messages": []})", Route::kChat), "messages");
  EXPECT_EQ(refused(R"({"messages": [{"content": "x"}]})", Route::kChat), "messages");
  EXPECT_EQ(refused(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", Route::kChat),
            "messages");
  EXPECT_EQ(refused(R"({"messages": [{"role": "user"}], "response_format": {"type": "json_object"}})", Route::kChat),
            "response_format");
  EXPECT_EQ(refused(R"({"prompt": ["a", "b"]})", Route::kState), "prompt");
  EXPECT_NE(refused("{").find("the body: not valid JSON"), std::string::npos);
  EXPECT_EQ(refused("[]"), "the body must be a JSON object");
  EXPECT_NE(refused(std::string(1000, '[')).find("nested deeper"), std::string::npos);
}

TEST(ErrorReply, HasOpenAisShape) {
  const HttpReply reply = error_reply(ApiError(429, "full \xff", "p", "c"));
  EXPECT_EQ(reply.status, 429);
  const auto error = nlohmann::json::parse(reply.body)["error"];
  EXPECT_EQ(error["type"], "rate_limit_error");
  EXPECT_EQ(error["param"], "p");
  EXPECT_EQ(error["code"], "c");
  EXPECT_EQ(reply.headers.at(0).first, "Retry-After");
}

}  // namespace
}  // namespace seqloom
