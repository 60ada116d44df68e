// eventfd(2) without ever waiting; eventfd.h says why that takes other calls than read and write.
#include "eventfd.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
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
#include "poll_task.h"
#include "system_call.h"

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
  long result;
  do {
    result = SystemCall(SYS_preadv2, fd, Argument(&vector), 1, -1, -1, RWF_NOWAIT);
  } while (result == -EINTR);
  if (result < 0) return static_cast<int>(-result);
  return result == sizeof *count ? 0 : EINVAL;
}

namespace {

constexpr unsigned kRequests = 256;

// One for the life of the process: it holds nothing but completions that nobody reads, and io_destroy() takes 40 ms. 0
// when the machine forbids asynchronous I/O or has none left (fs.aio-max-nr).
aio_context_t AioContext() {
  static const aio_context_t context = [] {
    aio_context_t created = 0;
    return syscall(SYS_io_setup, kRequests, &created) == 0 ? created : 0;
  }();
  return context;
}

// What remains without asynchronous I/O has a race that a hostile peer can win: it fills the counter between these two
// calls, and the write waits until the peer takes the count.
int SignalByWrite(int fd) {
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

}  // namespace

int Signal(int fd) {
  aio_context_t context = AioContext();
  if (context == 0) return SignalByWrite(fd);
  // A request that completes within io_submit: an eventfd is always readable, writable or both.
  iocb request{};
  request.aio_lio_opcode = IOCB_CMD_POLL;
  request.aio_fildes = fd;
  request.aio_buf = POLLIN | POLLOUT;
  request.aio_flags = IOCB_FLAG_RESFD;
  request.aio_resfd = fd;
  iocb* requests[] = {&request};
  int error = 0;
  for (int attempt = 0; attempt < 16; attempt++) {
    long submitted = SystemCall(SYS_io_submit, static_cast<long>(context), 1, Argument(requests));
    if (submitted == 1) return 0;
    error = submitted < 0 ? static_cast<int>(-submitted) : EAGAIN;
    if (error != EAGAIN) break;
    // The ring of completions is full: empty it, once for many signals. Another thread may be faster.
    io_event events[kRequests];
    timespec now{};
    syscall(SYS_io_getevents, context, 1, kRequests, events, &now);
  }
  return error;
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

Napi::Value Signalled(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  pollfd readable{Fd(info[0]), POLLIN, 0};
  int ready;
  do {
    ready = poll(&readable, 1, 0);
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) throw SystemError(env, errno, "poll");
  if (readable.revents & POLLNVAL) throw SystemError(env, EBADF, "poll");
  return Napi::Boolean::New(env, (readable.revents & POLLIN) != 0);
}

Napi::Value Write(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int error = Signal(Fd(info[0]));
  if (error != 0) throw SystemError(env, error, "write");
  return env.Undefined();
}

}  // namespace

PollTask* EventfdTask(int fd) {
  class Task : public PollTask {
   public:
    explicit Task(int fd) : fd_(fd) {}
    int Before(int events) override {
      uint64_t count;
      // Somebody else may have been faster.
      return TakeCount(fd_, &count) == EAGAIN ? 0 : events;
    }

   private:
    int fd_;
  };
  return new Task(fd);
}

void InitEventfd(Napi::Env env, Napi::Object exports) {
  Export<Create>(env, exports, "eventfd");
  Export<Read>(env, exports, "eventfdRead");
  Export<Signalled>(env, exports, "eventfdSignalled");
  Export<Write>(env, exports, "eventfdWrite");
}
