// AF_UNIX stream sockets with file descriptors on their messages (unix(7), SCM_RIGHTS). Sockets are close-on-exec and
// non-blocking, and so are the descriptors that arrive close-on-exec. No abstract names.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "discard.h"
#include "error.h"
#include "socket.h"

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
  // A listener that does not accept must not hold this thread for ever: a full backlog becomes EAGAIN.
  timeval timeout{kConnectSeconds, 0};
  timeval forever{};
  Check(env, setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout), "setsockopt");
  while (Connect(fd.get(), address) != 0) {
    if (errno != EINTR) throw SystemError(env, errno, "connect", path);
  }
  Check(env, setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &forever, sizeof forever), "setsockopt");
  int flags = Check(env, fcntl(fd.get(), F_GETFL), "fcntl");
  Check(env, fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK), "fcntl");
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
  Napi::Array result = Napi::Array::New(env, 2);
  result.Set(0u, Napi::Number::New(env, fds[0]));
  result.Set(1u, Napi::Number::New(env, fds[1]));
  return result;
}

// Room for the most descriptors that one message can carry, so that a peer can neither overflow nor truncate it.
union ControlBuffer {
  char bytes[CMSG_SPACE(sizeof(int) * kMaxFds)];
  cmsghdr header;
};

Napi::Value Receive(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  Bytes bytes = Slice(info[1], info[2], info[3]);
  napi_typedarray_type type;
  size_t capacity;
  void* data;
  if (napi_get_typedarray_info(env, info[4], &type, &capacity, &data, nullptr, nullptr) != napi_ok ||
      type != napi_int32_array) {
    throw Napi::TypeError::New(env, "fds must be an Int32Array");
  }
  if (capacity == 0) throw Napi::RangeError::New(env, "fds has no room for the count");
  size_t most = info[5].IsUndefined() ? capacity - 1 : Integer(info[5], "most", 0, static_cast<double>(capacity - 1));
  ssize_t received = ReceiveMessage(fd, bytes, static_cast<int32_t*>(data), most);
  if (received < 0 && received != -EAGAIN) throw SystemError(env, static_cast<int>(-received), "recvmsg");
  return Napi::Number::New(env, received < 0 ? -1 : static_cast<double>(received));
}

Napi::Value Send(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  ControlBuffer control;
  msghdr message{};
  if (!info[4].IsUndefined()) {
    if (!info[4].IsArray()) throw Napi::TypeError::New(env, "fds must be an array");
    Napi::Array fds = info[4].As<Napi::Array>();
    size_t count = fds.Length();
    if (count > kMaxFds) throw Napi::RangeError::New(env, "at most 253 fds fit on one message");
    if (count > 0) {
      memset(&control, 0, CMSG_SPACE(sizeof(int) * count));
      control.header.cmsg_level = SOL_SOCKET;
      control.header.cmsg_type = SCM_RIGHTS;
      control.header.cmsg_len = CMSG_LEN(sizeof(int) * count);
      for (size_t i = 0; i < count; i++) {
        int one = Fd(fds.Get(static_cast<uint32_t>(i)), "fds");
        memcpy(CMSG_DATA(&control.header) + i * sizeof(int), &one, sizeof one);
      }
      message.msg_control = control.bytes;
      message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    }
  }
  // Taken last: reading the array above may have run JavaScript, which may have detached the bytes.
  Bytes bytes = Slice(info[1], info[2], info[3]);
  iovec vector{bytes.data, bytes.length};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  ssize_t sent;
  do {
    sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0 && errno != EAGAIN) throw SystemError(env, errno, "sendmsg");
  return Napi::Number::New(env, static_cast<double>(sent));
}

}  // namespace

namespace {

// What has to be received and thrown away is a thread's, since the last reference to a file may go with it: closing a
// TCP socket that lingers takes as long as its owner likes. Until then nothing more is received; when it takes long,
// nothing ever is.
struct Drop {
  std::atomic<bool> is_done = false;
  const std::chrono::steady_clock::time_point begun = std::chrono::steady_clock::now();
};
constexpr auto kMostDropTime = std::chrono::milliseconds(250);
constexpr int kMostDrops = 16;
std::atomic<int> drops = 0;
// Of this thread, by the socket.
thread_local std::unordered_map<int, std::shared_ptr<Drop>> drops_of;

void CloseAll(const int32_t* fds) {
  for (int32_t n = kLostFds - fds[0]; n > 0; n--) close(fds[n]);
}

// Throws away `length` bytes that were looked at, and the descriptors that came with them, fds[1...] being copies of
// some. 0 when that has begun; or an errno, and the copies are closed.
int DropReceived(int fd, size_t length, int32_t* fds) {
  int copy = drops >= kMostDrops ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) {
    // The process may have no room for one: the last copy's is taken then.
    int32_t last = kLostFds - fds[0];
    if (drops >= kMostDrops || last == 0 || dup3(fd, fds[last], O_CLOEXEC) < 0) {
      CloseAll(fds);
      return EBUSY;
    }
    copy = fds[last];
    fds[0]++;
  }
  auto drop = std::make_shared<Drop>();
  drops++;
  bool is_started = StartWithoutSignals([copy, length, drop] {
    std::vector<uint8_t> bytes(length);
    recv(copy, bytes.data(), length, MSG_DONTWAIT);
    close(copy);
    drops--;
    drop->is_done = true;
  });
  if (is_started) {
    drops_of[fd] = drop;
    return 0;
  }
  drops--;
  close(copy);
  CloseAll(fds);
  return EBUSY;
}

// 0, EAGAIN while what came before is being dropped, or EBUSY.
int Dropping(int fd) {
  if (drops_of.empty()) return 0;
  auto found = drops_of.find(fd);
  if (found == drops_of.end()) return 0;
  const Drop& drop = *found->second;
  if (!drop.is_done) return std::chrono::steady_clock::now() - drop.begun < kMostDropTime ? EAGAIN : EBUSY;
  drops_of.erase(found);
  return 0;
}

// The descriptors of a message into fds[1...], and their count.
size_t Take(msghdr* message, int32_t* fds) {
  size_t count = 0;
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    size_t arrived = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < arrived; i++) {
      int one;
      memcpy(&one, CMSG_DATA(part) + i * sizeof(int), sizeof one);
      fds[++count] = one;
    }
  }
  return count;
}

ssize_t ReceiveOnce(int fd, Bytes bytes, int32_t* fds, size_t most, int flags, bool* is_cut) {
  ControlBuffer control;
  iovec vector{bytes.data, bytes.length};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  if (most > 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_LEN(sizeof(int) * most);
  }
  ssize_t received;
  do {
    received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT | flags);
  } while (received < 0 && errno == EINTR);
  if (received < 0) return -errno;
  size_t count = Take(&message, fds);
  *is_cut = (message.msg_flags & MSG_CTRUNC) != 0;
  fds[0] = static_cast<int32_t>(*is_cut ? kLostFds - static_cast<int32_t>(count) : static_cast<int32_t>(count));
  return received;
}

}  // namespace

void ForgetSocket(int fd) { drops_of.erase(fd); }

ssize_t ReceiveMessage(int fd, Bytes bytes, int32_t* fds, size_t most) {
  fds[0] = 0;
  if (int error = Dropping(fd); error != 0) return -error;
  bool is_cut = false;
  if (most >= kMaxFds) return ReceiveOnce(fd, bytes, fds, kMaxFds, 0, &is_cut);
  // More may come than there is room for, which the kernel would drop here: so it is looked at first.
  ssize_t seen = ReceiveOnce(fd, bytes, fds, most, MSG_PEEK, &is_cut);
  if (seen <= 0) return seen;
  size_t length = static_cast<size_t>(seen);
  if (is_cut) {
    int error = DropReceived(fd, length, fds);
    return error == 0 ? seen : -error;
  }
  // What was looked at is here already, or there is none.
  int32_t none;
  return ReceiveOnce(fd, {bytes.data, length}, &none, 0, 0, &is_cut);
}

void InitSocket(Napi::Env env, Napi::Object exports) {
  Export<Listen>(env, exports, "listen");
  Export<ConnectTo>(env, exports, "connect");
  Export<IsListener>(env, exports, "isListener");
  Export<Accept>(env, exports, "accept");
  Export<IsHungUp>(env, exports, "isHungUp");
  Export<SocketPair>(env, exports, "socketPair");
  Export<Receive>(env, exports, "receive");
  Export<Send>(env, exports, "send");
}
