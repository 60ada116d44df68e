// eventfd(2) without ever waiting; eventfd.h says why that takes other calls than read and write.
#include "eventfd.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "addon.h"
#include "arguments.h"
#include "error.h"

int CheckEventfd(int fd) {
  if (fcntl(fd, F_GETFD) == -1) return errno;
  char path[32];
  char target[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(path, target, sizeof target);
  if (length < 0) return errno;
  constexpr char kName[] = "anon_inode:[eventfd]";
  bool same = static_cast<size_t>(length) == sizeof kName - 1 && memcmp(target, kName, sizeof kName - 1) == 0;
  return same ? 0 : EINVAL;
}

int TakeCount(int fd, uint64_t* count) {
  iovec vector{count, sizeof *count};
  ssize_t result;
  do {
    result = preadv2(fd, &vector, 1, -1, RWF_NOWAIT);
  } while (result < 0 && errno == EINTR);
  if (result < 0) return errno;
  return result == sizeof *count ? 0 : EINVAL;
}

namespace {

constexpr unsigned kRequests = 64;

}  // namespace

Signaller::Signaller() {
  // Something that is always readable, so that the request completes, and signals, within io_submit.
  ready_ = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
  if (ready_ >= 0 && syscall(SYS_io_setup, kRequests, &context_) != 0) context_ = 0;
}

Signaller::~Signaller() {
  if (context_ != 0) syscall(SYS_io_destroy, context_);
  if (ready_ >= 0) close(ready_);
}

int Signaller::Signal(int fd) {
  if (context_ == 0) {
    // A machine that forbids asynchronous I/O (or has none left, see fs.aio-max-nr). What remains is a race that a hostile
    // peer can win: fill the counter between these two calls, and the write waits until it takes the count.
    pollfd writable{fd, POLLOUT, 0};
    int ready;
    do {
      ready = poll(&writable, 1, 0);
    } while (ready < 0 && errno == EINTR);
    if (ready < 0) return errno;
    if (writable.revents & POLLNVAL) return EBADF;
    if (!(writable.revents & POLLOUT)) return 0;
    uint64_t one = 1;
    return write(fd, &one, sizeof one) == sizeof one || errno == EAGAIN ? 0 : errno;
  }
  iocb request{};
  request.aio_lio_opcode = IOCB_CMD_POLL;
  request.aio_fildes = ready_;
  request.aio_buf = POLLIN;
  request.aio_flags = IOCB_FLAG_RESFD;
  request.aio_resfd = fd;
  iocb* requests[] = {&request};
  while (syscall(SYS_io_submit, context_, 1, requests) != 1) {
    if (errno != EAGAIN) return errno;
    // The ring of completions is full. Nobody needs them: empty it, once for many signals.
    io_event events[kRequests];
    timespec now{};
    if (syscall(SYS_io_getevents, context_, 1, kRequests, events, &now) <= 0) return EAGAIN;
  }
  return 0;
}

namespace {

Napi::Value Create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  unsigned count = static_cast<unsigned>(Integer(info[0], "count", 0, UINT32_MAX));
  return Napi::Number::New(env, Check(env, eventfd(count, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"));
}

Napi::Value Read(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t count = 0;
  int error = TakeCount(Fd(info[0]), &count);
  if (error == EAGAIN) return Napi::Number::New(env, 0);
  if (error != 0) throw SystemError(env, error, "read");
  return Napi::Number::New(env, static_cast<double>(count));
}

Napi::Value Write(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int error = static_cast<Signaller*>(info.Data())->Signal(Fd(info[0]));
  if (error != 0) throw SystemError(env, error, "write");
  return env.Undefined();
}

}  // namespace

void InitEventfd(Napi::Env env, Napi::Object exports) {
  Export<Create>(env, exports, "eventfd");
  Export<Read>(env, exports, "eventfdRead");
  Signaller* signaller = new Signaller();
  exports.Set("eventfdWrite", Napi::Function::New<Write>(env, "eventfdWrite", signaller));
  env.AddCleanupHook([](Signaller* one) { delete one; }, signaller);
}
