#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "mixers/mixer.h"
#include "serve/http_server.h"

namespace seqloom {

/// What a body of /v1/embeddings asks for.
struct EmbeddingRequest {
  static constexpr size_t kMostTexts = 2048;

  std::vector<std::string> texts;
  bool base64 = false;  // vectors as the bytes of their floats, which OpenAI's package asks for
};

/// Reads a body, for vectors of `width` numbers. Throws ApiError with status 400.
EmbeddingRequest parse_embedding(std::string_view body, int64_t width);

/// The answer: `vectors` [n, D] float32.
HttpReply embedding_reply(const Tensor& vectors, bool base64, const std::string& model, int64_t tokens);

}  // namespace seqloom
