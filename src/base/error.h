#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace seqloom {

/// Something that was asked for could not be done: a broken file, a loss that is not finite. Exit status 1.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The request itself is wrong: an unknown key, a value out of range, a bad shape. Exit status 2.
struct UsageError : Error {
  using Error::Error;
};

/// Throws Error with a formatted message. Say what was found, what was expected and how to mend it.
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Throws UsageError with a formatted message.
template <typename... Args>
[[noreturn]] void misuse(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace seqloom
