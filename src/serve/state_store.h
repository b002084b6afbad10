#pragma once
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "decode/stream.h"
#include "serve/errors.h"

namespace seqloom {

/// A saved stream.
struct StateInfo {
  std::string id;
  int64_t tokens = 0, bytes = 0;  // read by the stream; of its file
  std::time_t created = 0;
};

struct StateOptions {
  std::string folder;  // "": states are not kept
  int64_t max_states = 1000, max_bytes = int64_t{1} << 32;

  void describe(Fields& f) {
    f.add("states", folder, "folder in which states are kept");
    f.add("max_states", max_states, "states that may be kept").at_least(1);
    f.add("max_state_bytes", max_bytes, "bytes of all kept states").at_least(1);
  }
};

/// Streams at rest, each a safetensors file ID.safetensors in one folder, whole or not there at all: whoever starts
/// over the same folder goes on with the same states. Ids are 128 random bits. May be called from any thread; all throw
/// ApiError.
class StateStore {
 public:
  /// Takes over what the folder holds; files that are no states of this model are left alone and not listed.
  StateStore(StateOptions options, std::shared_ptr<Decoder> model, std::string model_id);

  StateInfo add(const Stream& stream);
  /// A state's file as somebody else saved it. Refuses what is not a state of this model.
  StateInfo add_file(const std::string& content);
  StateInfo fork(const std::string& id);
  void remove(const std::string& id);
  StateInfo info(const std::string& id) const;
  std::vector<StateInfo> list() const;
  int64_t count() const;
  std::string file(const std::string& id) const;
  Stream load(const std::string& id) const;
  /// Throws ApiError where states are not kept.
  void check_kept() const;

 private:
  std::string path(const std::string& id) const;
  std::string reserve(int64_t bytes);
  template <typename Write>
  StateInfo keep(int64_t bytes, Write write);

  StateOptions options_;
  std::shared_ptr<Decoder> model_;
  std::string model_id_;
  mutable std::mutex mutex_;
  std::map<std::string, StateInfo> states_;  // created = 0: is being written
  int64_t bytes_ = 0;
};

}  // namespace seqloom
