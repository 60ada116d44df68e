// Messages over AF_UNIX stream sockets with file descriptors on them (unix(7), SCM_RIGHTS), which arrive close-on-exec.
#include "fd_messages.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "addon.h"
#include "discard.h"
#include "error.h"
#include "system_call.h"

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
// Whether there was ever one.
std::atomic<bool> any_drops = false;
// Of this thread, by the socket.
thread_local std::unordered_map<int, std::shared_ptr<Drop>> drops_of;

void CloseAll(const int32_t* fds) {
  for (int32_t n = kLostFds - fds[0]; n > 0; n--) close(fds[n]);
}


}  // namespace

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
    any_drops = true;
    drops_of[fd] = drop;
    return 0;
  }
  drops--;
  close(copy);
  CloseAll(fds);
  return EBUSY;
}

int Dropping(int fd) {
  if (!any_drops.load(std::memory_order_relaxed)) return 0;
  auto found = drops_of.find(fd);
  if (found == drops_of.end()) return 0;
  const Drop& drop = *found->second;
  if (!drop.is_done) return std::chrono::steady_clock::now() - drop.begun < kMostDropTime ? EAGAIN : EBUSY;
  drops_of.erase(found);
  return 0;
}

namespace {

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

}  // namespace

ssize_t ReceiveOnce(int fd, Bytes bytes, int32_t* fds, size_t most, int flags, mmsghdr* header, bool* is_cut) {
  FdControl control;
  iovec vector{bytes.data, bytes.length};
  msghdr& message = header->msg_hdr;
  message = {};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  if (most > 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_LEN(sizeof(int) * most);
  }
  long result;
  do {
    result = SystemCall(SYS_recvmmsg, fd, Argument(header), 1, MSG_CMSG_CLOEXEC | MSG_DONTWAIT | flags, 0);
  } while (result == -EINTR);
  if (result < 0) return result;
  size_t count = Take(&message, fds);
  *is_cut = (message.msg_flags & MSG_CTRUNC) != 0;
  fds[0] = static_cast<int32_t>(*is_cut ? kLostFds - static_cast<int32_t>(count) : static_cast<int32_t>(count));
  return static_cast<ssize_t>(header->msg_len);
}

namespace {

Napi::Value Receive(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  Bytes bytes = Slice(info[1], info[2], info[3]);
  auto [fds, capacity] = Int32Array(info[4], "fds", 1);
  size_t most = info[5].IsUndefined() ? capacity - 1 : Integer(info[5], "most", 0, static_cast<double>(capacity - 1));
  ssize_t received = ReceiveMessage(fd, bytes, fds, most);
  if (received < 0 && received != -EAGAIN) throw SystemError(env, static_cast<int>(-received), "recvmsg");
  return Napi::Number::New(env, received < 0 ? -1 : static_cast<double>(received));
}

Napi::Value Send(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  FdControl control;
  msghdr message{};
  PutFds(info[4], &control, &message);
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

void TakeUrgentInline(int fd) {
  int yes = 1;
  // What is no socket has nothing out of band.
  (void)setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &yes, sizeof yes);
}

void PutFds(Napi::Value value, FdControl* control, msghdr* message) {
  if (value.IsUndefined()) return;
  Napi::Env env = value.Env();
  if (!value.IsArray()) throw Napi::TypeError::New(env, "fds must be an array");
  Napi::Array fds = value.As<Napi::Array>();
  size_t count = fds.Length();
  if (count > kMaxFds) throw Napi::RangeError::New(env, "at most 253 fds fit on one message");
  if (count == 0) return;
  memset(control, 0, CMSG_SPACE(sizeof(int) * count));
  control->header.cmsg_level = SOL_SOCKET;
  control->header.cmsg_type = SCM_RIGHTS;
  control->header.cmsg_len = CMSG_LEN(sizeof(int) * count);
  for (size_t i = 0; i < count; i++) {
    int one = Fd(fds.Get(static_cast<uint32_t>(i)), "fds");
    memcpy(CMSG_DATA(&control->header) + i * sizeof(int), &one, sizeof one);
  }
  message->msg_control = control->bytes;
  message->msg_controllen = CMSG_SPACE(sizeof(int) * count);
}

void CloseFds(int32_t* fds) {
  for (int32_t n = fds[0]; n > 0; n--) close(fds[n]);
  fds[0] = 0;
}

void ForgetSocket(int fd) { drops_of.erase(fd); }

ssize_t ReceiveMessage(int fd, Bytes bytes, int32_t* fds, size_t most) {
  fds[0] = 0;
  if (int error = Dropping(fd); error != 0) return -error;
  bool is_cut = false;
  mmsghdr header;
  if (most >= kMaxFds) return ReceiveOnce(fd, bytes, fds, kMaxFds, 0, &header, &is_cut);
  // More may come than there is room for, which the kernel would drop here: so it is looked at first.
  ssize_t seen = ReceiveOnce(fd, bytes, fds, most, MSG_PEEK, &header, &is_cut);
  // A socket that the peer made, and has as well, may be another one by now: it is readable for good, and nothing is
  // seen, of a byte out of band.
  if (seen == -EAGAIN) TakeUrgentInline(fd);
  if (seen <= 0) return seen;
  size_t length = static_cast<size_t>(seen);
  if (is_cut) {
    int error = DropReceived(fd, length, fds);
    return error == 0 ? seen : -error;
  }
  // What was looked at is here already, or there is none. But Linux also shows the descriptors of a message behind the
  // bytes that were asked for: they are taken with that one.
  int32_t none;
  bool has_fds = false;
  ssize_t received = ReceiveOnce(fd, {bytes.data, length}, &none, 0, 0, &header, &has_fds);
  if (!has_fds) CloseFds(fds);
  return received;
}

void InitMessages(Napi::Env env, Napi::Object exports) {
  Export<Receive>(env, exports, "receive");
  Export<Send>(env, exports, "send");
}
