// Mapped files and files that are written whole or not at all.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "io/atomic_file.h"
#include "io/expect_error.h"
#include "io/mapped_file.h"
#include "io/temporary_folder.h"

namespace seqloom {
namespace {

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
}

TEST(MappedFile, ShowsTheBytes) {
  const TemporaryFolder folder;
  MappedFile file(folder.make("a", std::string("x\0y", 3)));
  EXPECT_EQ(text_of(file), std::string("x\0y", 3));
  MappedFile moved = std::move(file);
  EXPECT_EQ(moved.size(), 3U);
  moved = MappedFile(folder.make("b", "longer"));
  EXPECT_EQ(text_of(moved), "longer");
}

TEST(MappedFile, AnEmptyFileIsFine) {
  const TemporaryFolder folder;
  EXPECT_EQ(MappedFile(folder.make("empty", "")).size(), 0U);
  EXPECT_EQ(read_file(folder.file("empty")), "");
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const TemporaryFolder folder;
  EXPECT_ERROR(MappedFile(folder.file("missing")), "missing: cannot be opened: No such file");
  EXPECT_ERROR(MappedFile(folder.file("")), "is not a regular file");
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_ERROR(MappedFile(folder.file("pipe")), "is not a regular file");  // and does not wait for a writer
  EXPECT_ERROR(read_file(folder.make("big", "12345"), 4), "over the limit of 4");
}

TEST(AtomicFile, WritesNewAndReplacesOld) {
  const TemporaryFolder folder;
  const std::string path = folder.make("a", "old");
  AtomicFile file(path);
  file.write("new");
  file.write(" text");
  EXPECT_EQ(content_of(path), "old");
  file.commit();
  EXPECT_EQ(content_of(path), "new text");
  write_file_atomically(folder.file("b"), "");
  EXPECT_EQ(content_of(folder.file("b")), "");
  EXPECT_EQ(folder.files(), 2U);
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const TemporaryFolder folder;
  const std::string path = folder.make("a", "old");
  { AtomicFile(path).write("half"); }
  EXPECT_EQ(content_of(path), "old");
  EXPECT_EQ(folder.files(), 1U);
}

TEST(AtomicFile, TwoWritersOfOneFileDoNotMix) {
  const TemporaryFolder folder;
  AtomicFile first(folder.file("a")), second(folder.file("a"));
  first.write("first");
  second.write("second");
  first.commit();
  EXPECT_EQ(content_of(folder.file("a")), "first");
  second.commit();
  EXPECT_EQ(content_of(folder.file("a")), "second");
}

TEST(AtomicFile, FollowsALink) {
  const TemporaryFolder folder;
  folder.make("real", "old");
  std::filesystem::create_symlink("real", folder.file("link"));
  write_file_atomically(folder.file("link"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder.file("link")));
  EXPECT_EQ(content_of(folder.file("real")), "new");
}

TEST(AtomicFile, WritesADeviceAsItIs) {
  write_file_atomically("/dev/null", "gone");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_ERROR(write_file_atomically("/dev/full", "text"), "/dev/full: writing failed: No space left");
}

TEST(AtomicFile, FailureKeepsTheOldAndNamesTheFile) {
  const TemporaryFolder folder;
  EXPECT_ERROR(AtomicFile(folder.file("none/a")), "none/a: cannot be written: No such file");
  std::filesystem::create_directory(folder.file("taken"));
  EXPECT_ERROR(write_file_atomically(folder.file("taken"), "x"), "taken: cannot be replaced");
  EXPECT_EQ(folder.files(), 1U);
}

}  // namespace
}  // namespace seqloom
