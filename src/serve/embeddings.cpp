#include "serve/embeddings.h"

#include <bit>

#include "serve/completion.h"
#include "serve/members.h"

namespace seqloom {
namespace {

using Json = nlohmann::ordered_json;

/// RFC 4648, with padding.
std::string base64(std::string_view bytes) {
  constexpr const char* kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) text += i + k <= bytes.size() ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

std::vector<std::string> read_texts(const Json& input) {
  if (input.is_string()) return {input.get<std::string>()};
  if (!input.is_array() || input.empty()) refuse("input", "expected a text or a list of texts");
  if (input.size() > EmbeddingRequest::kMostTexts) {
    refuse("input", fmt::format("more than {} texts at once", EmbeddingRequest::kMostTexts));
  }
  std::vector<std::string> texts;
  for (const auto& text : input) {
    if (!text.is_string()) refuse("input", "expected texts; token ids are not taken, since they are another model's");
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

}  // namespace

EmbeddingRequest parse_embedding(std::string_view body, int64_t width) {
  const Json json = parse_body(body);
  const Members members(json);
  const Json* input = members.find("input");
  if (input == nullptr) refuse("input", "missing");
  EmbeddingRequest request{read_texts(*input)};
  const std::string format = members.text("encoding_format");
  if (!format.empty() && format != "float" && format != "base64") {
    refuse("encoding_format", "expected float or base64");
  }
  request.base64 = format == "base64";
  if (members.integer("dimensions", 1, INT64_MAX, width) != width) {
    refuse("dimensions", fmt::format("the model's vectors have {} numbers", width));
  }
  return request;
}

HttpReply embedding_reply(const Tensor& vectors, bool in_base64, const std::string& model, int64_t tokens) {
  static_assert(std::endian::native == std::endian::little);
  const auto width = static_cast<size_t>(vectors.size(1));
  const auto* at = vectors.const_data_ptr<float>();
  Json data = Json::array();
  for (int64_t i = 0; i < vectors.size(0); ++i, at += width) {
    Json vector = in_base64 ? Json(base64({reinterpret_cast<const char*>(at), width * sizeof(float)}))
                            : Json(std::vector<float>(at, at + width));
    data.push_back({{"object", "embedding"}, {"index", i}, {"embedding", std::move(vector)}});
  }
  HttpReply reply;
  reply.body = text_of({{"object", "list"},
                        {"data", std::move(data)},
                        {"model", model},
                        {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}});
  return reply;
}

}  // namespace seqloom
