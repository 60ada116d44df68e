// ioctl(2) for the guest's VFIO.
#include <linux/ioctl.h>
#include <sys/ioctl.h>

#include "addon.h"
#include "arguments.h"
#include "error.h"

namespace {

Napi::Value Ioctl(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  unsigned long request = static_cast<unsigned long>(Integer(info[1], "request", 0, UINT32_MAX));
  int result;
  if (info[2].IsNumber()) {
    int64_t value = Integer(info[2], "argument", -kMaxSafeInteger);
    result = ioctl(fd, request, static_cast<unsigned long>(value));
  } else {
    Bytes argument = ByteArray(info[2], "argument");
    // Some requests tell their structure's size. VFIO's do not: its structures carry it in their first field.
    if (argument.length == 0 || argument.length < _IOC_SIZE(request)) {
      throw Napi::RangeError::New(env, "argument is shorter than the request's structure");
    }
    result = ioctl(fd, request, argument.data);
  }
  return Napi::Number::New(env, Check(env, result, "ioctl"));
}

}  // namespace

void InitIoctl(Napi::Env env, Napi::Object exports) { Export<Ioctl>(env, exports, "ioctl"); }
