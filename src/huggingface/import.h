#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "huggingface/family.h"
#include "io/tokenizer.h"

namespace seqloom::huggingface {

struct ImportRequest {
  std::string folder;     // config.json, model.safetensors or shards, tokenizer.json
  std::string out;        // the run's folder to make
  std::string tokenizer;  // "bytes" or another tokenizer.json; "": the folder's
};

struct ImportReport {
  std::string family;
  int64_t parameters = 0, tensors = 0, files = 0, vocabulary = 0;
  std::string tokenizer;             // its kind
  std::vector<std::string> unused;   // tensors that the model has no place for
  std::vector<std::string> unknown;  // keys of config.json that nobody knows
};

/// Makes an ordinary checkpoint of a folder in Hugging Face's layout. Throws Error naming what is wrong with it.
ImportReport import_checkpoint(const ImportRequest& request);

/// An unfilled module for a description: a Decoder, or for the task "sentence_embedding" an Encoder. `tokens` of the
/// vocabulary exist, the rest only pads it.
std::shared_ptr<torch::nn::Module> build(const Family& family, const Description& description, int64_t tokens,
                                         const std::string& where);

/// Fails when sizes that config.json asks for are not those on disk, before a model of these sizes is made.
void check_sizes(const Family& family, const Description& description, const TensorSource& source);

}  // namespace seqloom::huggingface
