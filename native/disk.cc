// What a disk's file needs beyond Node's own fs: a lock that two processes cannot hold, space given back or zeroed without
// writing (on libuv's thread pool, as it may take as long as a write), what O_DIRECT wants, and
// extended attributes.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "addon.h"
#include "arguments.h"
#include "error.h"

namespace {

class FallocateWork : public Napi::AsyncWorker {
 public:
  FallocateWork(const Napi::Function& done, int fd, int mode, off_t offset, off_t length)
      : Napi::AsyncWorker(done, "fallocate"), fd_(fd), mode_(mode), offset_(offset), length_(length) {}

  void Execute() override {
    int result;
    do {
      result = fallocate(fd_, mode_, offset_, length_);
    } while (result != 0 && errno == EINTR);
    error_ = result == 0 ? 0 : errno;
  }

  void OnOK() override {
    Napi::Env env = Env();
    Napi::HandleScope scope(env);
    Callback().Call({error_ == 0 ? env.Null() : SystemError(env, error_, "fallocate").Value()});
  }

 private:
  int fd_;
  int mode_;
  off_t offset_;
  off_t length_;
  int error_ = 0;
};

Napi::Value Fallocate(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  int mode = static_cast<int>(Integer(info[1], "mode", 0, INT32_MAX));
  off_t offset = Integer(info[2], "offset");
  off_t length = Integer(info[3], "length");
  if (!info[4].IsFunction()) throw Napi::TypeError::New(env, "done must be a function");
  // It deletes itself when it is done.
  (new FallocateWork(info[4].As<Napi::Function>(), fd, mode, offset, length))->Queue();
  return env.Undefined();
}

Napi::Value LockFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[1].IsBoolean()) throw Napi::TypeError::New(env, "shared must be a boolean");
  struct flock lock = {};
  lock.l_type = info[1].As<Napi::Boolean>() ? F_RDLCK : F_WRLCK;
  lock.l_whence = SEEK_SET;
  int result = fcntl(Fd(info[0]), F_OFD_SETLK, &lock);
  if (result != 0 && (errno == EAGAIN || errno == EACCES)) return Napi::Boolean::New(env, false);
  Check(env, result, "fcntl");
  return Napi::Boolean::New(env, true);
}

Napi::Value UnlockFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  struct flock lock = {};
  lock.l_type = F_UNLCK;
  lock.l_whence = SEEK_SET;
  Check(env, fcntl(Fd(info[0]), F_OFD_SETLK, &lock), "fcntl");
  return env.Undefined();
}

// <linux/stat.h>, which cannot be had along with <sys/stat.h>: statx's mask, and two fields of its structure.
constexpr unsigned kStatxDioAlign = 0x2000;
constexpr size_t kStatxSize = 256;
constexpr size_t kDioMemoryAlign = 152;
constexpr size_t kDioOffsetAlign = 156;

Napi::Value DirectAlignment(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  alignas(8) uint8_t status[kStatxSize] = {};
  Check(env, syscall(SYS_statx, Fd(info[0]), "", AT_EMPTY_PATH, kStatxDioAlign, status), "statx");
  uint32_t mask, memory, offset;
  memcpy(&mask, status, sizeof mask);
  memcpy(&memory, status + kDioMemoryAlign, sizeof memory);
  memcpy(&offset, status + kDioOffsetAlign, sizeof offset);
  if ((mask & kStatxDioAlign) == 0) return env.Undefined();
  return Napi::Number::New(env, offset == 0 ? 0 : std::max(memory, offset));
}

constexpr size_t kMaxAttribute = 4096;

Napi::Value GetAttribute(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string name = Text(info[1], "name");
  char value[kMaxAttribute];
  ssize_t length = fgetxattr(Fd(info[0]), name.c_str(), value, sizeof value);
  if (length < 0 && (errno == ENODATA || errno == EOPNOTSUPP)) return env.Undefined();
  return Napi::String::New(env, value, Check(env, length, "fgetxattr"));
}

Napi::Value SetAttribute(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string name = Text(info[1], "name");
  std::string value = Text(info[2], "value");
  Check(env, fsetxattr(Fd(info[0]), name.c_str(), value.data(), value.size(), 0), "fsetxattr");
  return env.Undefined();
}

}  // namespace

void InitDisk(Napi::Env env, Napi::Object exports) {
  Export<Fallocate>(env, exports, "fallocate");
  Export<LockFile>(env, exports, "lockFile");
  Export<UnlockFile>(env, exports, "unlockFile");
  Export<DirectAlignment>(env, exports, "directAlignment");
  Export<GetAttribute>(env, exports, "getAttribute");
  Export<SetAttribute>(env, exports, "setAttribute");
}
