// A safetensors file: whatever the bytes, a header that covers the data or an Error.
#include <cstdlib>

#include "base/error.h"
#include "io/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  try {
    const auto header = seqloom::parse_safetensors_header(file, "fuzz");
    for (const auto& [name, info] : header.tensors) {
      if (info.end > size - header.data_start) std::abort();
    }
  } catch (const seqloom::Error&) {
  }
  return 0;
}
