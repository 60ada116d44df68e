// What a process needs that somebody supervises (shared/notify): a socket for its messages, and the means to become
// another program.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "addon.h"
#include "arguments.h"
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
  Export<Execute>(env, exports, "execute");
}
