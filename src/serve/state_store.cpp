#include "serve/state_store.h"

#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "io/atomic_file.h"
#include "io/mapped_file.h"

namespace seqloom {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "state-";
constexpr const char* kSuffix = ".safetensors";
constexpr size_t kMaxFile = size_t{1} << 34;

std::string new_id() {
  unsigned char bits[16];
  if (getrandom(bits, sizeof bits, 0) != sizeof bits) throw ApiError(503, "no random numbers for a state's id");
  std::string id = kPrefix;
  for (const unsigned char byte : bits) id += fmt::format("{:02x}", byte);
  return id;
}

bool is_id(const std::string& id) {
  return id.size() == 38 && id.starts_with(kPrefix) && id.find_first_not_of("0123456789abcdef", 6) == std::string::npos;
}

std::time_t written_at(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 ? status.st_mtime : 0;
}

}  // namespace

StateStore::StateStore(StateOptions options, std::shared_ptr<Decoder> model, std::string model_id)
    : options_(std::move(options)), model_(std::move(model)), model_id_(std::move(model_id)) {
  if (options_.folder.empty()) return;
  std::error_code error;
  fs::create_directories(options_.folder, error);
  if (!fs::is_directory(options_.folder)) fail("{}: cannot be made a folder for states", options_.folder);
  for (const auto& entry : fs::directory_iterator(options_.folder)) {
    const std::string id = entry.path().stem().string();
    if (entry.path().extension() != kSuffix || !is_id(id)) continue;
    try {
      const Stream stream = load_stream(path(id), *model_, model_id_);
      states_[id] = {id, stream.tokens(), static_cast<int64_t>(entry.file_size()), written_at(path(id))};
      bytes_ += states_[id].bytes;
    } catch (const std::exception&) {  // of another model, or damaged
      continue;
    }
  }
}

std::string StateStore::path(const std::string& id) const {
  return options_.folder + "/" + id + kSuffix;
}

void StateStore::check_kept() const {
  if (options_.folder.empty()) {
    throw ApiError(400, "this server keeps no states: start it with --states FOLDER", "state", "no_states");
  }
}

std::string StateStore::reserve(int64_t bytes) {
  check_kept();
  const std::lock_guard lock(mutex_);
  if (static_cast<int64_t>(states_.size()) >= options_.max_states || bytes > options_.max_bytes - bytes_) {
    throw ApiError(409,
                   fmt::format("{} states of {} bytes are kept, and {} states of {} bytes may be: delete some first",
                               states_.size(), bytes_, options_.max_states, options_.max_bytes),
                   "", "states_full");
  }
  const std::string id = new_id();
  states_[id] = {id, 0, bytes, 0};
  bytes_ += bytes;
  return id;
}

/// Writes a new file of about `bytes` bytes; write(path) returns the stream's number of tokens.
template <typename Write>
StateInfo StateStore::keep(int64_t bytes, Write write) {
  const std::string id = reserve(bytes);
  try {
    const int64_t tokens = write(path(id));
    const auto size = static_cast<int64_t>(fs::file_size(path(id)));
    const std::lock_guard lock(mutex_);
    bytes_ += size - bytes;
    return states_[id] = {id, tokens, size, std::max<std::time_t>(1, written_at(path(id)))};
  } catch (...) {
    std::error_code ignored;
    fs::remove(path(id), ignored);
    const std::lock_guard lock(mutex_);
    states_.erase(id);
    bytes_ -= bytes;
    throw;
  }
}

StateInfo StateStore::add(const Stream& stream) {
  return keep(stream.bytes(), [&](const std::string& path) {
    save_stream(path, stream, model_id_);
    return stream.tokens();
  });
}

StateInfo StateStore::add_file(const std::string& content) {
  return keep(static_cast<int64_t>(content.size()), [&](const std::string& path) {
    write_file_atomically(path, content);
    try {
      if (Safetensors(path).metadata().count("model") == 0) fail("it does not say which model it belongs to");
      return load_stream(path, *model_, model_id_).tokens();
    } catch (const Error& error) {
      std::string what = error.what();
      if (what.starts_with(path)) what = "the file" + what.substr(path.size());
      throw ApiError(400, "not a state of this model: " + what);
    }
  });
}

StateInfo StateStore::fork(const std::string& id) {
  const std::string content = file(id);
  const int64_t tokens = info(id).tokens;
  return keep(static_cast<int64_t>(content.size()), [&](const std::string& path) {
    write_file_atomically(path, content);
    return tokens;
  });
}

void StateStore::remove(const std::string& id) {
  const StateInfo known = info(id);
  std::error_code ignored;
  fs::remove(path(id), ignored);
  const std::lock_guard lock(mutex_);
  if (states_.erase(id) > 0) bytes_ -= known.bytes;
}

StateInfo StateStore::info(const std::string& id) const {
  check_kept();
  const std::lock_guard lock(mutex_);
  const auto found = states_.find(id);
  if (found == states_.end() || found->second.created == 0) {
    throw ApiError(404, "there is no such state", "state", "state_not_found");
  }
  return found->second;
}

std::vector<StateInfo> StateStore::list() const {
  check_kept();
  const std::lock_guard lock(mutex_);
  std::vector<StateInfo> all;
  for (const auto& [id, state] : states_) {
    if (state.created != 0) all.push_back(state);
  }
  return all;
}

int64_t StateStore::count() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(states_.size());
}

std::string StateStore::file(const std::string& id) const {
  return read_file(path(info(id).id), kMaxFile);
}

Stream StateStore::load(const std::string& id) const {
  return load_stream(path(info(id).id), *model_, model_id_);
}

}  // namespace seqloom
