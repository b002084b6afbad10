#pragma once
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

/// The message of the `Kind` that `work` throws. It must be one line.
template <typename Kind = seqloom::Error, typename Work>
std::string error_of(const Work& work) {
  try {
    work();
  } catch (const Kind& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

#define EXPECT_ERROR(work, part) \
  EXPECT_NE(error_of([&] { work; }).find(part), std::string::npos) << error_of([&] { work; })
#define EXPECT_MISUSE(work, part) \
  EXPECT_NE(error_of<seqloom::UsageError>([&] { work; }).find(part), std::string::npos) << error_of([&] { work; })
