#include "io/token_frame.h"

#include "base/error.h"
#include "io/added_tokens.h"
#include "io/json.h"

namespace seqloom {
namespace {

/// Reads one processor after the other into the frame.
class FrameReader {
 public:
  FrameReader(const std::string& name, int64_t vocabulary) : name_(name), vocabulary_(vocabulary) {}

  void read(const Config& processor) {
    const std::string type = text_at(processor, "type");
    if (type == "ByteLevel") return;  // it only moves offsets
    if (type == "Sequence") return read_sequence(processor);
    if (type == "TemplateProcessing") return read_template(processor);
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      frame_.before.push_back(pair_id(member(processor, "cls")));
      frame_.after.push_back(pair_id(member(processor, "sep")));
      return;
    }
    fail(
        "{}: post_processor '{}' is not supported; expected TemplateProcessing, BertProcessing, ByteLevel or a "
        "Sequence of them",
        name_, printable(type));
  }
  TokenFrame frame() const { return frame_; }

 private:
  void read_sequence(const Config& sequence) {
    const Config& processors = member(sequence, "processors");
    if (!processors.is_array() || processors.size() > 16) fail("{}: post_processor.processors is not a list", name_);
    for (const auto& processor : processors) {
      if (text_at(processor, "type") == "Sequence") fail("{}: a post_processor nested in itself", name_);
      read(processor);
    }
  }

  /// single: a list of { SpecialToken: { id } } and, once, { Sequence: { id: "A" } }.
  void read_template(const Config& processor) {
    const Config& pieces = member(processor, "single");
    if (!pieces.is_array() || pieces.size() > 64) fail("{}: post_processor.single is not a short list", name_);
    TokenFrame added;
    bool text_seen = false;
    for (const auto& piece : pieces) {
      if (piece.is_object() && piece.contains("Sequence")) {
        if (text_seen) fail("{}: post_processor.single repeats the text", name_);
        text_seen = true;
        continue;
      }
      const std::string token = text_at(member(piece, "SpecialToken"), "id");
      const Config& ids = member(member(member(processor, "special_tokens"), token), "ids");
      if (!ids.is_array() || ids.empty() || ids.size() > 64) {
        fail("{}: post_processor.special_tokens has no ids for '{}'", name_, printable(token));
      }
      auto& side = text_seen ? added.after : added.before;
      for (const auto& id : ids) side.push_back(checked(id, token));
    }
    if (!text_seen) fail("{}: post_processor.single leaves the text out", name_);
    frame_.before.insert(frame_.before.begin(), added.before.begin(), added.before.end());
    frame_.after.insert(frame_.after.end(), added.after.begin(), added.after.end());
  }

  /// ["[SEP]", 102]
  int32_t pair_id(const Config& pair) const {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string()) {
      fail("{}: post_processor: expected a token and its id", name_);
    }
    return checked(pair[1], pair[0].get<std::string>());
  }

  int32_t checked(const Config& value, const std::string& token) const {
    const int32_t id = token_id(value, token, name_);
    if (id >= vocabulary_) fail("{}: post_processor: id {} is beyond the vocabulary of {}", name_, id, vocabulary_);
    return id;
  }

  const std::string& name_;
  int64_t vocabulary_;
  TokenFrame frame_;
};

}  // namespace

TokenFrame read_frame(const Config& root, const std::string& name, int64_t vocabulary) {
  FrameReader reader(name, vocabulary);
  const Config& processor = member(root, "post_processor");
  if (!processor.is_null()) reader.read(processor);
  return reader.frame();
}

}  // namespace seqloom
