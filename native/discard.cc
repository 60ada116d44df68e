// Closing descriptors that a peer handed over. close() waits where the file's owner wants it to: a file of FUSE or of a
// server that does not answer, a TCP socket that lingers, a device, or an AF_UNIX socket in which such a one waits to
// be received. So only what cannot wait is closed here (memory, eventfds, pipes, sockets of ours in which nothing
// waits), and the rest by threads, which may hang forever. Who handed it over is to be charged for it until then, and
// has threads of its own, so that nobody else's wait behind it.
//
// Closing the last descriptor of memory frees it, which takes 0.1 s for a GiB: that, too, is left to a thread where it
// is much.
#include <fcntl.h>
#include <linux/sockios.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "discard.h"
#include "error.h"
#include "eventfd.h"
#include "fd_messages.h"
#include "file_status.h"

namespace {

struct Item {
  int fd;
  napi_env env;
  uint32_t token;
};

struct Owner {
  std::deque<Item> waiting;
  unsigned threads = 0;
  // Of these, those that wait for something to close.
  unsigned idle = 0;
  std::condition_variable arrival;
};

// Of the process, and never destroyed: a thread may still be closing when it ends.
struct Closers {
  std::mutex mutex;
  // By number. One without work is not here.
  std::map<uint32_t, Owner> owners;
  std::vector<Item> closed;
  uint32_t last_token = 0;
};
constexpr unsigned kMaxThreadsOfOwner = 4;
// A thread costs more than most of what it closes.
constexpr std::chrono::milliseconds kIdle{500};
// Memory of which more is not freed at once.
constexpr uint64_t kMuchMemory = uint64_t{16} << 20;

Closers& closers() {
  static Closers* const one = new Closers;
  return *one;
}

// A socket of ours may be shut down, so that nothing more comes.
bool IsEmptySocket(int fd) {
  int waiting = 0;
  return shutdown(fd, SHUT_RDWR) == 0 && ioctl(fd, SIOCINQ, &waiting) == 0 && waiting == 0;
}

bool ClosesAtOnce(int fd, bool is_own_socket) {
  if (is_own_socket) return IsEmptySocket(fd);
  struct statx status;
  if (StatusWithoutWaiting(fd, &status) != 0) return false;
  if (fcntl(fd, F_GET_SEALS) >= 0) return status.stx_blocks * 512 < kMuchMemory;
  return S_ISFIFO(status.stx_mode) || CheckEventfd(fd) == 0;
}

void Run(uint32_t number) {
  Closers& all = closers();
  std::unique_lock lock(all.mutex);
  // Stays where it is, as long as this thread counts.
  Owner& owner = all.owners[number];
  for (;;) {
    if (owner.waiting.empty()) {
      owner.idle++;
      bool has_work = owner.arrival.wait_for(lock, kIdle, [&] { return !owner.waiting.empty(); });
      owner.idle--;
      if (!has_work) break;
    }
    Item item = owner.waiting.front();
    owner.waiting.pop_front();
    lock.unlock();
    close(item.fd);
    lock.lock();
    all.closed.push_back(item);
  }
  if (--owner.threads == 0) all.owners.erase(number);
}

// Without a thread it waits in the queue for the end of those that there are; without any, nothing is left but to close
// it here.
uint32_t Discard(int fd, napi_env env, uint32_t number, bool is_own_socket) {
  if (is_own_socket) ForgetSocket(fd);
  if (ClosesAtOnce(fd, is_own_socket)) {
    close(fd);
    return 0;
  }
  Closers& all = closers();
  std::unique_lock lock(all.mutex);
  if (++all.last_token == 0) all.last_token = 1;
  uint32_t token = all.last_token;
  Owner& owner = all.owners[number];
  owner.waiting.push_back({fd, env, token});
  if (owner.idle >= owner.waiting.size()) owner.arrival.notify_one();
  else if (owner.threads < kMaxThreadsOfOwner && StartWithoutSignals([number] { Run(number); })) owner.threads++;
  if (owner.threads > 0) return token;
  all.owners.erase(number);
  lock.unlock();
  close(fd);
  return 0;
}

Napi::Value DiscardExport(const Napi::CallbackInfo& info) {
  int fd = Fd(info[0]);
  if (fcntl(fd, F_GETFD) == -1) throw SystemError(info.Env(), errno, "close");
  uint32_t owner = info[1].IsUndefined() ? 0 : static_cast<uint32_t>(Integer(info[1], "owner", 0, UINT32_MAX));
  return Napi::Number::New(info.Env(), Discard(fd, info.Env(), owner, info[2].ToBoolean()));
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

bool StartWithoutSignals(std::function<void()> work) {
  sigset_t every;
  sigset_t before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  bool is_started = true;
  try {
    std::thread(std::move(work)).detach();
  } catch (const std::system_error&) {
    is_started = false;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return is_started;
}

void InitDiscard(Napi::Env env, Napi::Object exports) {
  Export<DiscardExport>(env, exports, "discard");
  Export<TakeDiscarded>(env, exports, "takeDiscarded");
}
