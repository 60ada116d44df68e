// AF_UNIX stream sockets (unix(7)), close-on-exec and non-blocking. No abstract names. Messages: fd_messages.cc.
//
// A byte that a peer sends "out of band" (MSG_OOB) is a byte like any other (SO_OOBINLINE). Otherwise Linux throws it
// away in the middle of a receive call, and closes the descriptors that came with it there and then, which may take as
// long as the peer likes.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "addon.h"
#include "arguments.h"
#include "error.h"
#include "fd_messages.h"

namespace {

constexpr time_t kConnectSeconds = 5;

// Closes its descriptor unless it was handed on.
class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int release() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

sockaddr_un Address(Napi::Env env, const std::string& path, const char* syscall) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // An empty path would mean an abstract name.
  if (path.empty()) throw SystemError(env, ENOENT, syscall, path);
  if (path.size() >= sizeof address.sun_path) throw SystemError(env, ENAMETOOLONG, syscall, path);
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

int Bind(int fd, const sockaddr_un& address) {
  return bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

int Connect(int fd, const sockaddr_un& address) {
  return connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

// Whether the path holds a socket that nobody listens on. Anything that is not sure counts as in use.
bool IsStale(const sockaddr_un& address) {
  struct stat status;
  if (lstat(address.sun_path, &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  OwnedFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return probe.get() >= 0 && Connect(probe.get(), address) != 0 && errno == ECONNREFUSED;
}

Napi::Value Listen(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string path = Text(info[0], "path");
  int backlog = static_cast<int>(Integer(info[1], "backlog", 0, INT32_MAX));
  sockaddr_un address = Address(env, path, "bind");
  OwnedFd fd(Check(env, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket"));
  // The socket file takes its mode from here, less the umask: whatever the umask is, only the owner may connect.
  Check(env, fchmod(fd.get(), 0600), "fchmod");
  int result = Bind(fd.get(), address);
  // Two processes that start at the same instant on one path may still take it from each other: their supervisor's
  // matter.
  if (result != 0 && errno == EADDRINUSE) {
    if (!IsStale(address)) throw SystemError(env, EADDRINUSE, "bind", path);
    if (unlink(address.sun_path) != 0 && errno != ENOENT) throw SystemError(env, errno, "unlink", path);
    result = Bind(fd.get(), address);
  }
  if (result != 0) throw SystemError(env, errno, "bind", path);
  if (listen(fd.get(), backlog) != 0) {
    int error = errno;
    unlink(address.sun_path);
    throw SystemError(env, error, "listen", path);
  }
  return Napi::Number::New(env, fd.release());
}

Napi::Value ConnectTo(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string path = Text(info[0], "path");
  sockaddr_un address = Address(env, path, "connect");
  OwnedFd fd(Check(env, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
  // A listener that does not accept must not hold this thread forever: a full backlog becomes EAGAIN.
  timeval timeout{kConnectSeconds, 0};
  timeval forever{};
  Check(env, setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout), "setsockopt");
  while (Connect(fd.get(), address) != 0) {
    if (errno != EINTR) throw SystemError(env, errno, "connect", path);
  }
  Check(env, setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &forever, sizeof forever), "setsockopt");
  int flags = Check(env, fcntl(fd.get(), F_GETFL), "fcntl");
  Check(env, fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK), "fcntl");
  TakeUrgentInline(fd.get());
  return Napi::Number::New(env, fd.release());
}

Napi::Value IsListener(const Napi::CallbackInfo& info) {
  int fd = Fd(info[0]);
  auto option = [fd](int name) {
    int value = 0;
    socklen_t length = sizeof value;
    return getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
  };
  bool is_listener = option(SO_DOMAIN) == AF_UNIX && option(SO_TYPE) == SOCK_STREAM && option(SO_ACCEPTCONN) == 1;
  return Napi::Boolean::New(info.Env(), is_listener);
}

Napi::Value Accept(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int listener = Fd(info[0]);
  int fd;
  do {
    fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0 && errno != EAGAIN && errno != ECONNABORTED) throw SystemError(env, errno, "accept");
  if (fd >= 0) TakeUrgentInline(fd);
  return Napi::Number::New(env, fd);
}

Napi::Value IsHungUp(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  pollfd socket{Fd(info[0]), POLLRDHUP, 0};
  int ready;
  do {
    ready = poll(&socket, 1, 0);
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) throw SystemError(env, errno, "poll");
  return Napi::Boolean::New(env, (socket.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0);
}

Napi::Value SocketPair(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fds[2];
  Check(env, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "socketpair");
  for (int fd : fds) TakeUrgentInline(fd);
  Napi::Array result = Napi::Array::New(env, 2);
  result.Set(0u, Napi::Number::New(env, fds[0]));
  result.Set(1u, Napi::Number::New(env, fds[1]));
  return result;
}

}  // namespace

void InitSocket(Napi::Env env, Napi::Object exports) {
  Export<Listen>(env, exports, "listen");
  Export<ConnectTo>(env, exports, "connect");
  Export<IsListener>(env, exports, "isListener");
  Export<Accept>(env, exports, "accept");
  Export<IsHungUp>(env, exports, "isHungUp");
  Export<SocketPair>(env, exports, "socketPair");
}
