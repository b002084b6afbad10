#include "decode/speculative.h"

#include <algorithm>

#include "base/error.h"

namespace seqloom {

/// Where a stream stood.
struct Speculation::Place {
  Place(const Stream& stream, const Memory& empty)
      : memory(place_of(stream.memory, empty)), logits(stream.logits), recent(stream.recent) {}
  void restore(Stream& stream) {
    stream.memory = std::move(memory);
    stream.logits = std::move(logits);
    stream.recent = std::move(recent);
  }
  Memory memory;
  Tensor logits;
  std::vector<int64_t> recent;
};

Speculation::Speculation(std::shared_ptr<Decoder> model, Stream stream, std::shared_ptr<Decoder> draft,
                         int64_t draft_tokens)
    : model_(std::move(model)),
      draft_(std::move(draft)),
      draft_tokens_(draft_tokens),
      empty_(model_->empty_memory(1)),
      draft_empty_(draft_->empty_memory(1)),
      stream_(std::move(stream)),
      draft_stream_(empty_stream(*draft_)) {
  if (draft_tokens < 1) misuse("draft_tokens = {}, expected at least 1", draft_tokens);
  if (model_->vocabulary() != draft_->vocabulary()) {
    misuse("the draft model has a vocabulary of {} tokens and the model one of {}: they need the same tokenizer",
           draft_->vocabulary(), model_->vocabulary());
  }
  const torch::ArrayRef<int64_t> recent = stream_.recent;
  const auto room = static_cast<size_t>(std::min(draft_->longest(), static_cast<int64_t>(recent.size())));
  read(*draft_, draft_stream_, recent.slice(recent.size() - room));
}

/// How many tokens are drafted where `count` more may follow the next one.
int64_t Speculation::drafts_of(int64_t count) const {
  const int64_t room = model_->longest() - stream_.tokens() - 1;
  const int64_t draft_room = draft_->longest() - draft_stream_.tokens() - 1;
  return std::max<int64_t>(0, std::min({count, draft_tokens_, room, draft_room}));
}

/// `first` and `count` tokens that the draft model goes on with; its stream has read all of them but the last.
std::vector<int64_t> Speculation::drafted(int64_t first, int64_t count, const SamplerOptions& options) {
  std::vector<int64_t> tokens = {first};
  while (static_cast<int64_t>(tokens.size()) <= count) {
    read_one(*draft_, {&draft_stream_}, {tokens.back()});
    // at the place in the large model's stream, whose draws are to be met
    const int64_t position = stream_.tokens() + static_cast<int64_t>(tokens.size());
    tokens.push_back(sample(draft_stream_.logits, draft_stream_.recent, options, position));
  }
  return tokens;
}

/// Both streams, which have read `tokens` as far as they did, have read the first `kept` of them and no others.
void Speculation::settle(torch::ArrayRef<int64_t> tokens, size_t kept, Place& place, Place& draft_place) {
  const auto go_back = [stay = tokens.slice(0, kept)](Decoder& model, Stream& stream, Place& to) {
    if (cut_back(stream.memory, to.memory, static_cast<int64_t>(stay.size()))) {
      stream.recent = std::move(to.recent);
      stream.note(stay);
    } else {
      to.restore(stream);
      read_in_order(model, stream, stay);
    }
  };
  if (kept < tokens.size()) go_back(*model_, stream_, place);
  if (kept + 1 < tokens.size()) {
    go_back(*draft_, draft_stream_, draft_place);  // whose logits are old: it reads a token before it is asked for one
  } else if (kept == tokens.size() && draft_stream_.tokens() < draft_->longest()) {
    read_one(*draft_, {&draft_stream_}, {tokens.back()});
  }
}

int64_t Speculation::generate(int64_t count, const SamplerOptions& options,
                              const std::function<bool(int64_t token)>& emit) {
  int64_t made = 0;
  for (bool goes_on = true; made < count && goes_on;) {
    const int64_t position = stream_.tokens(), first = draw(stream_, options);
    Place place(stream_, empty_), draft_place(draft_stream_, draft_empty_);
    const auto tokens = drafted(first, drafts_of(count - made - 1), options);
    const Tensor logits = read_in_order(*model_, stream_, tokens);

    Stream known;  // what the penalty for repetition looks back on
    known.recent = place.recent;
    size_t kept = 0;
    for (int64_t token = first; goes_on && token == tokens[kept];) {
      goes_on = emit(token);
      known.note({token});
      if (++kept == tokens.size()) break;
      token =
          sample(logits[static_cast<int64_t>(kept) - 1], known.recent, options, position + static_cast<int64_t>(kept));
    }
    made += static_cast<int64_t>(kept);
    ++counts_.rounds;
    counts_.drafted += static_cast<int64_t>(tokens.size()) - 1;
    counts_.accepted += static_cast<int64_t>(kept) - 1;
    settle(tokens, kept, place, draft_place);
    stream_.logits = logits[static_cast<int64_t>(kept) - 1];
  }
  return made;
}

}  // namespace seqloom
