// What a disk's file needs beyond Node's own fs: a lock that two processes cannot hold, what O_DIRECT wants, and
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

}  // namespace

void InitDisk(Napi::Env env, Napi::Object exports) {
  Export<LockFile>(env, exports, "lockFile");
  Export<UnlockFile>(env, exports, "unlockFile");
  Export<DirectAlignment>(env, exports, "directAlignment");
  Export<GetAttribute>(env, exports, "getAttribute");
}
