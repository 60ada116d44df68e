// Closing descriptors that a peer handed over. close() waits where the file's owner wants it to: a file of FUSE or of a server
// that does not answer, a TCP socket that lingers, a device. So only what cannot wait is closed here (memory, eventfds, pipes,
// AF_UNIX sockets), and the rest by threads, which may hang for ever. Who handed it over is to be charged for it until then.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "discard.h"
#include "error.h"
#include "eventfd.h"
#include "file_status.h"

namespace {

struct Item {
  int fd;
  napi_env env;
  uint32_t token;
};

// Of the process, and never destroyed: a thread may still be closing when it ends.
struct Closers {
  std::mutex mutex;
  std::deque<Item> waiting;
  std::vector<Item> closed;
  uint32_t last_token = 0;
  unsigned threads = 0;
};
constexpr unsigned kMaxThreads = 16;

Closers& closers() {
  static Closers* const one = new Closers;
  return *one;
}

bool ClosesAtOnce(int fd) {
  if (fcntl(fd, F_GET_SEALS) >= 0) return true;
  struct statx status;
  if (StatusWithoutWaiting(fd, &status) != 0) return false;
  if (S_ISFIFO(status.stx_mode)) return true;
  if (S_ISSOCK(status.stx_mode)) {
    int domain = 0;
    socklen_t length = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
  }
  return CheckEventfd(fd) == 0;
}

void Run() {
  Closers& all = closers();
  std::unique_lock lock(all.mutex);
  while (!all.waiting.empty()) {
    Item item = all.waiting.front();
    all.waiting.pop_front();
    lock.unlock();
    close(item.fd);
    lock.lock();
    if (item.env != nullptr) all.closed.push_back(item);
  }
  all.threads--;
}

// Without a thread it waits in the queue for the end of those that there are; without any, nothing is left but to close it here.
void StartThread(Closers& all) {
  if (all.threads >= kMaxThreads) return;
  sigset_t every;
  sigset_t before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  all.threads++;
  try {
    std::thread(Run).detach();
  } catch (const std::system_error&) {
    all.threads--;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Napi::Value DiscardExport(const Napi::CallbackInfo& info) {
  int fd = Fd(info[0]);
  if (fcntl(fd, F_GETFD) == -1) throw SystemError(info.Env(), errno, "close");
  return Napi::Number::New(info.Env(), Discard(fd, info.Env()));
}

Napi::Value TakeDiscarded(const Napi::CallbackInfo& info) {
  Closers& all = closers();
  std::lock_guard lock(all.mutex);
  Napi::Array result = Napi::Array::New(info.Env());
  uint32_t count = 0;
  std::erase_if(all.closed, [&](const Item& item) {
    bool is_own = item.env == static_cast<napi_env>(info.Env());
    if (is_own) result.Set(count++, Napi::Number::New(info.Env(), item.token));
    return is_own;
  });
  return result;
}

}  // namespace

uint32_t Discard(int fd, napi_env env) {
  if (ClosesAtOnce(fd)) {
    close(fd);
    return 0;
  }
  Closers& all = closers();
  std::unique_lock lock(all.mutex);
  if (++all.last_token == 0) all.last_token = 1;
  uint32_t token = all.last_token;
  all.waiting.push_back({fd, env, token});
  StartThread(all);
  if (all.threads > 0) return token;
  all.waiting.pop_back();
  lock.unlock();
  close(fd);
  return 0;
}

void InitDiscard(Napi::Env env, Napi::Object exports) {
  Export<DiscardExport>(env, exports, "discard");
  Export<TakeDiscarded>(env, exports, "takeDiscarded");
}
