// The safetensors format: round trips, and every way in which a header may lie.
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include "io/expect_error.h"
#include "io/temporary_folder.h"

namespace seqloom {
namespace {

std::string file_of(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + std::string(data_bytes, '\1');
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), "m.safetensors");
}

SafetensorsHeader parse(const std::string& header, size_t data_bytes) {
  return parse(file_of(header, data_bytes));
}

bool identical(const torch::Tensor& a, const torch::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && torch::equal(a, b);
}

TEST(Safetensors, RoundTripsEveryType) {
  const TemporaryFolder folder;
  torch::manual_seed(1);
  TensorMap tensors;
  for (const auto type : {torch::kFloat64, torch::kFloat32, torch::kFloat16, torch::kBFloat16, torch::kInt64,
                          torch::kInt32, torch::kInt16, torch::kInt8, torch::kUInt8, torch::kBool}) {
    tensors[std::string("odd ") + c10::toString(type)] = (torch::randn({3, 1, 5}) * 20).abs().to(type);
    tensors[std::string("scalar ") + c10::toString(type)] = torch::ones({}, type);
  }
  tensors["strided"] = torch::randn({4, 6}).t();
  tensors["none"] = torch::empty({0, 3});
  tensors["with gradient"] = torch::ones({2}, torch::requires_grad());
  save_safetensors(folder.file("a"), tensors, {{"kind", "test"}, {"é", "\n"}});
  const Safetensors file(folder.file("a"));
  EXPECT_EQ(file.metadata(), (Metadata{{"kind", "test"}, {"é", "\n"}}));
  const TensorMap loaded = file.load_all();
  ASSERT_EQ(loaded.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(identical(loaded.at(name), tensor)) << name;
  EXPECT_EQ(folder.files(), 1U);
}

TEST(Safetensors, ViewsLieInTheFileAndOutliveIt) {
  const TemporaryFolder folder;
  const TensorMap tensors = {{"a", torch::arange(5).to(torch::kInt8)},  // written behind the wider ones
                             {"b", torch::randn({3, 2})},
                             {"c", torch::randn({7}, torch::kFloat64)},
                             {"d", torch::ones({3}, torch::kBool)},
                             {"e", torch::empty({0})}};
  save_safetensors(folder.file("a"), tensors, {});
  TensorMap views;
  {
    const Safetensors file(folder.file("a"));
    for (const auto& [name, tensor] : tensors) views[name] = file.view(name);
    EXPECT_EQ(file.view("b").data_ptr(), file.view("b").data_ptr());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.view("c").data_ptr()) % 64, 0U);
    EXPECT_ERROR(file.view("f"), "there is no tensor 'f'");
  }
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(identical(views.at(name), tensor)) << name;
  views["b"].fill_(3);  // this process's own page
  EXPECT_TRUE(identical(Safetensors(folder.file("a")).load("b"), tensors.at("b")));
}

TEST(Safetensors, ATensorThatLiesOddlyIsCopied) {
  const TemporaryFolder folder;
  const std::string header = R"({"x":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},)"
                             R"("y":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  const Safetensors file(folder.make("odd", file_of(header, 5)));
  EXPECT_TRUE(identical(file.view("y"), file.load("y")));
  EXPECT_NE(file.view("y").data_ptr(), file.view("y").data_ptr());
}

TEST(Safetensors, NarrowAndUnsignedTypesLoad) {
  const TemporaryFolder folder;
  TensorMap tensors;
  for (const auto type : {torch::kUInt16, torch::kUInt32, torch::kUInt64, torch::kFloat8_e4m3fn, torch::kFloat8_e5m2}) {
    tensors[c10::toString(type)] = torch::arange(3).to(type);
  }
  save_safetensors(folder.file("a"), tensors, {});
  const Safetensors file(folder.file("a"));
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(file.load(name).scalar_type(), tensor.scalar_type());
    EXPECT_TRUE(torch::equal(file.load(name).to(torch::kFloat), torch::arange(3).to(torch::kFloat))) << name;
  }
}

TEST(Safetensors, DataBeginsAtAMultipleOfEight) {
  const TemporaryFolder folder;
  for (const char* name : {"a", "ab", "abc"}) {
    save_safetensors(folder.file("a"), {{name, torch::ones({1})}}, {});
    EXPECT_EQ(parse(content_of(folder.file("a"))).data_start % 8, 0U);
  }
}

TEST(Safetensors, LoadsDataThatIsNotAligned) {
  const TemporaryFolder folder;
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("b":{"dtype":"F64","shape":[2],"data_offsets":[1,17]}} )";
  std::string bytes = file_of(header, 17);
  const double values[] = {1.5, -2.5};
  std::memcpy(bytes.data() + bytes.size() - 16, values, 16);
  const Safetensors file(folder.make("a", bytes));
  EXPECT_TRUE(torch::equal(file.load("b"), torch::tensor({1.5, -2.5}, torch::kFloat64)));
}

TEST(Safetensors, AnyNonzeroByteIsTrue) {
  const TemporaryFolder folder;
  std::string bytes = file_of(R"({"a":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})", 3);
  bytes.replace(bytes.size() - 3, 3, std::string("\0\1\xff", 3));
  const Safetensors file(folder.make("a", bytes));
  EXPECT_TRUE(torch::equal(file.load("a"), torch::tensor({false, true, true})));
}

TEST(Safetensors, AFailedSaveLeavesTheOldFile) {
  const TemporaryFolder folder;
  const std::string path = folder.make("a", "old");
  EXPECT_MISUSE(save_safetensors(path, {{"z", torch::zeros({1}, torch::kComplexFloat)}}, {}), "cannot be written");
  EXPECT_MISUSE(save_safetensors(path, {{"\xff", torch::zeros({1})}}, {}), "not UTF-8");
  EXPECT_MISUSE(save_safetensors(path, {{"__metadata__", torch::zeros({1})}}, {}), "__metadata__");
  EXPECT_EQ(content_of(path), "old");
  EXPECT_EQ(folder.files(), 1U);
}

TEST(Safetensors, NamesWhatIsMissing) {
  const TemporaryFolder folder;
  save_safetensors(folder.file("a"), {{"x", torch::zeros({1})}}, {});
  const Safetensors file(folder.file("a"));
  EXPECT_FALSE(file.contains("y"));
  EXPECT_ERROR(file.load("y"), "a: there is no tensor 'y'");
  EXPECT_ERROR(Safetensors(folder.file("b")), "b: cannot be opened");
}

TEST(SafetensorsHeader, ReadsTensorsAndMetadata) {
  const auto header = parse(R"({"__metadata__":{"k":"v"},"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
                            R"("empty":{"dtype":"F32","shape":[0,7],"data_offsets":[12,12]}})",
                            12);
  EXPECT_EQ(header.metadata.at("k"), "v");
  EXPECT_EQ(header.tensors.at("w").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header.tensors.at("empty").end, 12U);
  EXPECT_TRUE(parse("{}", 0).tensors.empty());
}

TEST(SafetensorsHeader, RefusesABrokenFile) {
  EXPECT_ERROR(parse("1234567"), "m.safetensors: 7 bytes are too few");
  EXPECT_ERROR(parse(std::string(8, '\xff')), "over the limit");
  EXPECT_ERROR(parse(file_of("{}   ", 0).substr(0, 11)), "truncated");
  EXPECT_ERROR(parse("[]", 0), "not a JSON object");
  EXPECT_ERROR(parse("{\"a\xff\":1}", 0), "not valid JSON");
  EXPECT_ERROR(parse(std::string(100'000, '['), 0), "nested deeper");
  EXPECT_ERROR(parse("{}", 3), "3 bytes at its end belong to no tensor");
  EXPECT_ERROR(parse(R"({"__metadata__":{"a":1}})", 0), "__metadata__.a is not text");
  EXPECT_ERROR(parse(R"({"__metadata__":[]})", 0), "__metadata__ is not a table");
}

/// One tensor `t` whose entry is `entry`, over 8 bytes of data.
std::string complaint(const std::string& entry) {
  return error_of([&] { parse("{\"t\":" + entry + "}", 8); });
}

TEST(SafetensorsHeader, RefusesABrokenTensor) {
  const std::pair<const char*, const char*> cases[] = {
      {"7", "expected dtype, shape and data_offsets"},
      {R"({"dtype":"F32","shape":[2]})", "expected dtype, shape and data_offsets"},
      {R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})", "dtype \"F31\" is not one"},
      {R"({"dtype":3,"shape":[2],"data_offsets":[0,8]})", "dtype 3 is not one"},
      {R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})", "shape is not a list"},
      {R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", "not a whole number"},
      {R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})", "not a whole number"},
      {R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})", "not a whole number"},
      {R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]})", "not a whole number"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", "overflows"},
      {R"({"dtype":"F32","shape":[0,4611686018427387904,8],"data_offsets":[0,0]})", "overflows"},
      {R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})", "takes 12 bytes, its data_offsets say 0..8"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", "data_offsets say 8..0"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,9]})", "not a pair"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})", "not a pair"},
      {R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})", "truncated"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", "4 bytes before tensor 't' belong to no tensor"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", "4 bytes at its end belong to no tensor"},
  };
  for (const auto& [entry, part] : cases) {
    const std::string message = complaint(entry);
    EXPECT_NE(message.find(part), std::string::npos) << entry << "\n" << message;
    EXPECT_EQ(message.find("m.safetensors: "), 0U);
  }
  const std::string f32 = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_ERROR(parse("{\"a\":" + f32 + ",\"a\":" + f32 + "}", 8), "the key 'a' occurs twice");
  EXPECT_ERROR(parse("{\"a\":" + f32 + ",\"b\":" + f32 + "}", 8), "overlaps");
}

}  // namespace
}  // namespace seqloom
