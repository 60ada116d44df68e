// What can be asked of a file descriptor that a peer handed over, before anything trusts it, and memory files of our
// own.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "eventfd.h"
#include "file_status.h"
#include "huge_pages.h"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

namespace {

Napi::Value Duplicate(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return Napi::Number::New(env, Check(env, fcntl(Fd(info[0]), F_DUPFD_CLOEXEC, 0), "fcntl"));
}

Napi::Value Close(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  // Linux has closed it also when it says EINTR.
  if (close(Fd(info[0])) != 0 && errno != EINTR) throw SystemError(env, errno, "close");
  return env.Undefined();
}

Napi::Value FileStatus(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  struct statx status;
  Check(env, StatusWithoutWaiting(fd, &status), "statx");
  bool is_memory = fcntl(fd, F_GET_SEALS) != -1 || (status.stx_attributes & STATX_ATTR_DAX) != 0;
  const char* kind = "other";
  if (S_ISREG(status.stx_mode)) kind = is_memory ? "memory" : "file";
  else if (S_ISSOCK(status.stx_mode)) kind = "socket";
  Napi::Object result = Napi::Object::New(env);
  dev_t device = makedev(status.stx_dev_major, status.stx_dev_minor);
  result.Set("device", Napi::Number::New(env, static_cast<double>(device)));
  result.Set("inode", Napi::Number::New(env, static_cast<double>(status.stx_ino)));
  result.Set("size", Napi::Number::New(env, static_cast<double>(status.stx_size)));
  result.Set("kind", Napi::String::New(env, kind));
  return result;
}

Napi::Value AddSeals(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Check(env, fcntl(Fd(info[0]), F_ADD_SEALS, static_cast<int>(Integer(info[1], "seals", 0, INT32_MAX))), "fcntl");
  return env.Undefined();
}

Napi::Value IsEventfdExport(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int error = CheckEventfd(Fd(info[0]));
  if (error != 0 && error != EINVAL) throw SystemError(env, error, "readlink");
  return Napi::Boolean::New(env, error == 0);
}

// What must be known of a DMA map's file: without an object, and in one call.
Napi::Value MemoryStatus(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  double* status = TypedArray<double, napi_float64_array>(info[1], "status", "a Float64Array", 6).data;
  struct statx file;
  Check(env, StatusWithoutWaiting(fd, &file), "statx");
  int flags = Check(env, fcntl(fd, F_GETFL), "fcntl");
  int seals = fcntl(fd, F_GET_SEALS);
  if (seals == -1 && errno != EINVAL) throw SystemError(env, errno, "fcntl");
  status[0] = S_ISREG(file.stx_mode) ? static_cast<double>(file.stx_size) : -1;
  status[1] = (flags & O_ACCMODE) != O_RDONLY;
  status[2] = seals;
  // A file of huge pages says so by its blocks, and others mostly need not be asked.
  size_t page = seals != -1 && file.stx_blksize > 4096 ? HugePageSize(fd) : 0;
  status[3] = static_cast<double>(std::max(page, size_t{4096}));
  status[4] = static_cast<double>(makedev(file.stx_dev_major, file.stx_dev_minor));
  status[5] = static_cast<double>(file.stx_ino);
  return env.Undefined();
}

Napi::Value CreateMemory(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string name = Text(info[0], "name");
  off_t size = Integer(info[1], "size");
  if (!info[2].IsBoolean()) throw Napi::TypeError::New(env, "hugePages must be a boolean");
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (info[2].As<Napi::Boolean>()) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  int fd = Check(env, memfd_create(name.c_str(), flags), "memfd_create");
  if (ftruncate(fd, size) != 0) {
    int error = errno;
    close(fd);
    throw SystemError(env, error, "ftruncate");
  }
  return Napi::Number::New(env, fd);
}

}  // namespace

void InitFile(Napi::Env env, Napi::Object exports) {
  Export<Duplicate>(env, exports, "duplicate");
  Export<Close>(env, exports, "close");
  Export<FileStatus>(env, exports, "fileStatus");
  Export<AddSeals>(env, exports, "addSeals");
  Export<IsEventfdExport>(env, exports, "isEventfd");
  Export<MemoryStatus>(env, exports, "memoryStatus");
  Export<CreateMemory>(env, exports, "createMemory");
}
