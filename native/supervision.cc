// What a process needs that somebody supervises (shared/notify): a socket for its messages, and the means to become
// another program.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "addon.h"
#include "arguments.h"
#include "crash_point.h"
#include "error.h"

namespace {

Napi::Value ConnectDatagrams(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string path = Text(info[0], "path");
  sockaddr_un address{AF_UNIX, {}};
  if (path.empty() || path.size() >= sizeof address.sun_path) throw SystemError(env, ENAMETOOLONG, "connect", path);
  memcpy(address.sun_path, path.data(), path.size());
  socklen_t length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  // A name of the abstract namespace has no zero at its end, a path has one.
  if (path[0] == '@') address.sun_path[0] = '\0';
  else length++;
  int fd = Check(env, socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket");
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0) {
    int error = errno;
    close(fd);
    throw SystemError(env, error, "connect", path);
  }
  return Napi::Number::New(env, fd);
}

Napi::Value SendDatagram(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int to = Fd(info[0]);
  Bytes bytes = ByteArray(info[1], "bytes");
  int fd = static_cast<int>(Integer(info[2], "fd", -1, INT32_MAX));
  int wait = static_cast<int>(Integer(info[3], "milliseconds", 0, 60'000));
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    cmsghdr header;
  } control{};
  iovec vector{bytes.data, bytes.length};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
  }
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  auto milliseconds = [](const timespec& time) { return time.tv_sec * 1000 + time.tv_nsec / 1'000'000; };
  long until = milliseconds(now) + wait;
  for (;;) {
    bool is_sent = sendmsg(to, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
    CrashPoint();
    if (is_sent) return Napi::Boolean::New(env, true);
    if (errno != EAGAIN && errno != EINTR) throw SystemError(env, errno, "sendmsg");
    clock_gettime(CLOCK_MONOTONIC, &now);
    long left = until - milliseconds(now);
    if (left <= 0) return Napi::Boolean::New(env, false);
    pollfd event{to, POLLOUT, 0};
    poll(&event, 1, static_cast<int>(left));
  }
}

Napi::Value Execute(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string path = Text(info[0], "path");
  if (!info[1].IsArray()) throw Napi::TypeError::New(env, "arguments must be an array");
  Napi::Array array = info[1].As<Napi::Array>();
  std::vector<std::string> texts{path};
  for (uint32_t i = 0; i < array.Length(); i++) texts.push_back(Text(array.Get(i), "arguments"));
  std::vector<char*> arguments;
  for (std::string& text : texts) arguments.push_back(text.data());
  arguments.push_back(nullptr);
  // Node has made all that it was started with close-on-exec.
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) fcntl(fd, F_SETFD, 0);
  execv(path.c_str(), arguments.data());
  throw SystemError(env, errno, "execve", path);
}

}  // namespace

void InitSupervision(Napi::Env env, Napi::Object exports) {
  Export<ConnectDatagrams>(env, exports, "connectDatagrams");
  Export<SendDatagram>(env, exports, "sendDatagram");
  Export<Execute>(env, exports, "execute");
}
