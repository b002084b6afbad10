#pragma once
#include <optional>
#include <set>
#include <string>

#include "io/jinja/template.h"
#include "serve/completion_request.h"
#include "tasks/language.h"

namespace seqloom {

/// A language model as the routes use it: its name, how it writes chats and where its texts end.
class ServedModel {
 public:
  /// `id` names model and weights, as saved states do.
  ServedModel(LanguageModel model, std::string name, std::string id);

  const LanguageModel& language() const { return model_; }
  const std::string& name() const { return name_; }
  const std::string& id() const { return id_; }
  /// Whether a text ends with this token.
  bool ends_with(int64_t token) const { return ends_.count(token) > 0; }
  /// The text of a chat, ready for the answer. Throws ApiError: the model has no template, or the template refuses.
  std::string chat_text(const CompletionRequest& request) const;
  /// `begins`: the prompt begins a text, so that what the tokenizer puts round one (a beginning-of-text token) is
  /// there.
  std::vector<int64_t> encode(const CompletionRequest::Prompt& prompt, bool begins) const;

 private:
  void read_tokenizer_config();
  void read_ends();

  LanguageModel model_;
  std::string name_, id_;
  std::optional<JinjaTemplate> template_;
  nlohmann::ordered_json special_tokens_ = nlohmann::ordered_json::object();  // bos_token, eos_token ... as texts
  std::set<int64_t> ends_;
};

}  // namespace seqloom
