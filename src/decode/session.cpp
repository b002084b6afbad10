#include "decode/session.h"

namespace seqloom {

Session::Session(std::shared_ptr<Decoder> model, std::string model_id)
    : model_(std::move(model)), model_id_(std::move(model_id)), stream_(empty_stream(*model_)) {}

int64_t Session::next(const SamplerOptions& options) {
  const int64_t token = draw(stream_, options);
  read_one(*model_, {&stream_}, {token});
  return token;
}

Session Session::fork() const {
  Session other(model_, model_id_);
  other.stream_ = stream_.fork();
  return other;
}

}  // namespace seqloom
