// vfio-user-holder PROGRAM ARGUMENT...: starts the program, keeps file descriptors for it, and starts it again with
// them when it died. It is the service manager's side of sd_notify(3), sd_listen_fds(3) and systemd's fd store, for
// where no systemd is: `vfio-user-bridge --supervised`.
//
// A program of its own, and not Node.js, since what must outlive a failure has to be simpler than what fails: one
// thread, no memory that is allocated, nothing but poll() while there is nothing to do, and a hundredth of the memory.
//
// Left out of what systemd does: FDPOLL (a descriptor stays until it is removed), a watchdog, and the recognition of a
// descriptor that is stored twice.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fd_store.h"
#include "restarts.h"

namespace {

constexpr const char* kName = "vfio-user-bridge";
constexpr int kSignals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD};
// What systemd takes in one message.
constexpr size_t kMostText = 4096;
constexpr size_t kMostMessageFds = 253;
// Messages in a row before signals are looked at.
constexpr int kMostMessages = 64;
constexpr int kNotStarted = 127;
// A signal that comes again so soon is the same one: timeout(1) and shells signal a process, and then its group.
constexpr int64_t kSameSignalMs = 250;

FdStore store;
sigset_t program_mask;
rlimit program_files;
int messages = -1;
char directory[96];
sockaddr_un address{AF_UNIX, {}};
// Whom the holder itself has to notify, if anybody.
const char* manager = nullptr;

pid_t program = -1;
int64_t started_at = 0;
bool was_ready = false;
bool is_ending = false;
// SIGHUP has the program read its files again, and does not mean that the terminal is gone.
bool reads_again = false;
// The last that is to end it.
uint32_t last_signal = 0;
int64_t last_signal_at = 0;
// Said once for each start.
bool said_foreign = false;
bool said_full = false;

int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

// A line on standard error; lost when nobody reads it, since nothing here may wait.
__attribute__((format(printf, 1, 2))) void Say(const char* format, ...) {
  char line[512];
  int length = snprintf(line, sizeof line, "%s: ", kName);
  va_list arguments;
  va_start(arguments, format);
  length += vsnprintf(line + length, sizeof line - length, format, arguments);
  va_end(arguments);
  if (length > static_cast<int>(sizeof line) - 1) length = sizeof line - 1;
  line[length++] = '\n';
  pollfd output{STDERR_FILENO, POLLOUT, 0};
  if (poll(&output, 1, 0) == 1 && write(STDERR_FILENO, line, length) < 0) return;
}

// The signals stay blocked: they come by a descriptor.
int OpenSignals() {
  sigset_t mask;
  sigemptyset(&mask);
  for (int one : kSignals) sigaddset(&mask, one);
  sigprocmask(SIG_BLOCK, &mask, &program_mask);
  signal(SIGPIPE, SIG_IGN);
  return signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
}

// A directory of its own, which nobody else may enter: the queue of a socket in the abstract namespace could be filled
// by any process of the machine.
bool OpenMessages() {
  const char* places[] = {getenv("RUNTIME_DIRECTORY"), getenv("XDG_RUNTIME_DIR"), "/run", "/tmp"};
  bool is_made = false;
  for (const char* place : places) {
    if (is_made || place == nullptr || place[0] != '/') continue;
    int length = snprintf(directory, sizeof directory, "%s/vfio-user-holder.XXXXXX", place);
    is_made = length < static_cast<int>(sizeof directory) && mkdtemp(directory) != nullptr;
  }
  if (!is_made) return false;
  snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", directory);
  messages = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  int on = 1;
  return messages >= 0 && setsockopt(messages, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0 &&
         bind(messages, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

void CloseMessages() {
  unlink(address.sun_path);
  rmdir(directory);
}

// As many files as the machine allows; the program gets the limit that was there.
void RaiseFileLimit() {
  getrlimit(RLIMIT_NOFILE, &program_files);
  rlimit most{program_files.rlim_max, program_files.rlim_max};
  setrlimit(RLIMIT_NOFILE, &most);
}

[[noreturn]] void BecomeProgram(char** arguments) {
  // A group of its own: Ctrl-C reaches it once, by way of the holder, and not twice.
  setpgid(0, 0);
  signal(SIGPIPE, SIG_DFL);
  bool is_set = store.HandOver() && setenv("NOTIFY_SOCKET", address.sun_path, 1) == 0;
  // Its messages go on to the holder's manager, and that is whom a watchdog is about.
  unsetenv("WATCHDOG_PID");
  if (is_set) {
    setrlimit(RLIMIT_NOFILE, &program_files);
    sigprocmask(SIG_SETMASK, &program_mask, nullptr);
    execvp(arguments[0], arguments);
  }
  Say("%s cannot be started: %s", arguments[0], strerror(errno));
  _exit(kNotStarted);
}

// False when there is no room for a process.
bool Start(char** arguments) {
  was_ready = said_foreign = said_full = false;
  started_at = Now();
  program = fork();
  if (program == 0) BecomeProgram(arguments);
  if (program < 0) Say("no process for the bridge: %s", strerror(errno));
  return program > 0;
}

// The value of KEY=value at the start of a line, and its length; null when that is another key.
const char* ValueOf(const char* line, const char* end, const char* key, size_t* length) {
  size_t size = strlen(key);
  if (static_cast<size_t>(end - line) < size || memcmp(line, key, size) != 0) return nullptr;
  *length = end - line - size;
  return line + size;
}

// As systemd's fdname_is_valid().
bool IsName(const char* name, size_t length) {
  if (length > FdStore::kMostName) return false;
  for (size_t i = 0; i < length; i++) {
    if (name[i] < ' ' || name[i] > '~' || name[i] == ':') return false;
  }
  return true;
}

// What the program says of itself goes on to whoever supervises the holder.
void PassOn(const char* text, size_t length) {
  if (manager == nullptr) return;
  sockaddr_un to{AF_UNIX, {}};
  size_t size = strlen(manager);
  if (size >= sizeof to.sun_path) return;
  memcpy(to.sun_path, manager, size);
  if (to.sun_path[0] == '@') to.sun_path[0] = '\0';
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return;
  sendto(fd, text, length, MSG_NOSIGNAL, reinterpret_cast<sockaddr*>(&to),
         static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size));
  close(fd);
}

// Deals with one message. Descriptors that the store took are -1 afterwards.
void Handle(const char* text, size_t length, int* fds, size_t count) {
  bool stores = false;
  bool removes = false;
  bool is_barrier = false;
  const char* name = "stored";
  size_t name_length = strlen(name);
  for (const char* line = text; line < text + length;) {
    const void* found = memchr(line, '\n', text + length - line);
    const char* end = found != nullptr ? static_cast<const char*>(found) : text + length;
    size_t size;
    auto is = [&](const char* assignment) { return ValueOf(line, end, assignment, &size) != nullptr && size == 0; };
    if (is("FDSTORE=1")) stores = true;
    if (is("FDSTOREREMOVE=1")) removes = true;
    // Its descriptor is closed by now being dealt with, which is all of the answer.
    if (is("BARRIER=1")) is_barrier = true;
    if (is("READY=1")) was_ready = true;
    if (is("STOPPING=1")) is_ending = true;
    const char* given = ValueOf(line, end, "FDNAME=", &size);
    if (given != nullptr && size > 0 && IsName(given, size)) {
      name = given;
      name_length = size;
    }
    line = end + 1;
  }
  if (removes) {
    store.Remove(name, name_length);
  } else if (stores) {
    for (size_t i = 0; i < count; i++) {
      if (store.Add(fds[i], name, name_length)) {
        fds[i] = -1;
      } else if (!said_full) {
        said_full = true;
        Say("no room for the file descriptor %.*s: %zu are kept", static_cast<int>(name_length), name, store.count());
      }
    }
  } else if (!is_barrier) {
    PassOn(text, length);
  }
}

// Takes one message, and says whether there was one.
bool TakeMessage() {
  static char text[kMostText];
  static int fds[kMostMessageFds];
  alignas(cmsghdr) static char control[CMSG_SPACE(sizeof fds) + CMSG_SPACE(sizeof(ucred))];
  iovec vector{text, sizeof text};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t length = recvmsg(messages, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (length < 0) return errno == EINTR;
  size_t count = 0;
  ucred sender{};
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET) continue;
    if (part->cmsg_type == SCM_RIGHTS) {
      count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      memcpy(fds, CMSG_DATA(part), count * sizeof(int));
    } else if (part->cmsg_type == SCM_CREDENTIALS) {
      memcpy(&sender, CMSG_DATA(part), sizeof sender);
    }
  }
  // Descriptors that found no room here are lost, and what came is not what was sent.
  bool is_whole = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  if (sender.pid != program || sender.uid != geteuid()) {
    if (!said_foreign) Say("a message of process %d was ignored: it is not the bridge", sender.pid);
    said_foreign = true;
  } else if (!is_whole) {
    if (!said_full) Say("a message was ignored: it, or what it brought, found no room");
    said_full = true;
  } else {
    Handle(text, static_cast<size_t>(length), fds, count);
  }
  for (size_t i = 0; i < count; i++) {
    if (fds[i] >= 0) close(fds[i]);
  }
  return true;
}

// Ended by itself, in a way that another start would not change.
bool IsFinal(int status) {
  static bool was_ever_ready = false;
  was_ever_ready = was_ever_ready || was_ready;
  if (is_ending) return true;
  if (!WIFEXITED(status)) return false;
  constexpr int kUsage = 2;
  return WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == kUsage || !was_ever_ready;
}

int ExitCode(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

// Says how it ended, and when it is started again.
void SayDeath(int status, int64_t delay) {
  char how[48];
  if (WIFEXITED(status)) {
    snprintf(how, sizeof how, "ended with code %d", WEXITSTATUS(status));
  } else {
    const char* name = sigabbrev_np(WTERMSIG(status));
    snprintf(how, sizeof how, "was killed by signal %d (SIG%s)", WTERMSIG(status), name != nullptr ? name : "RT");
  }
  if (delay == 0) {
    Say("the bridge, process %d, %s: it is started again, with %zu file descriptors", program, how, store.count());
  } else {
    Say("the bridge, process %d, %s, again and again: it is started again in %d ms, with %zu file descriptors", program,
        how, static_cast<int>(delay), store.count());
  }
}

// Whether the program is dead. All that it sent is dealt with before its number can become another process's.
bool IsDead(int* status) {
  siginfo_t info{};
  if (waitid(P_PID, program, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return false;
  for (int i = 0; i < 100 * kMostMessages && TakeMessage(); i++) continue;
  while (waitpid(program, status, 0) < 0 && errno == EINTR) continue;
  return true;
}

void TakeSignals(int signals) {
  signalfd_siginfo info;
  while (read(signals, &info, sizeof info) == sizeof info) {
    if (info.ssi_signo == SIGCHLD) continue;
    bool ends = info.ssi_signo != SIGUSR1 && !(info.ssi_signo == SIGHUP && reads_again);
    if (ends) {
      is_ending = true;
      bool is_same = info.ssi_signo == last_signal && Now() - last_signal_at < kSameSignalMs;
      last_signal = info.ssi_signo;
      last_signal_at = Now();
      if (is_same) continue;
    }
    if (program > 0) kill(program, static_cast<int>(info.ssi_signo));
  }
}

int Run(int signals, char** arguments) {
  Restarts restarts(Now());
  int status = 0;
  int64_t start_at = Now();
  for (;;) {
    int64_t wait = -1;
    if (program < 0) {
      if (is_ending) return ExitCode(status);
      wait = start_at - Now();
      if (wait <= 0) {
        if (!Start(arguments)) start_at = Now() + Restarts::kMostDelayMs;
        continue;
      }
    }
    pollfd events[] = {{signals, POLLIN, 0}, {messages, POLLIN, 0}};
    poll(events, 2, static_cast<int>(wait));
    for (int i = 0; i < kMostMessages && TakeMessage(); i++) continue;
    TakeSignals(signals);
    if (program > 0 && IsDead(&status)) {
      if (IsFinal(status)) return ExitCode(status);
      int64_t delay = restarts.DelayAfter(started_at, Now());
      SayDeath(status, delay);
      start_at = Now() + delay;
      program = -1;
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    Say("usage: vfio-user-holder PROGRAM ARGUMENT...");
    return 2;
  }
  for (int i = 2; i < count; i++) {
    bool is_file = strncmp(arguments[i], "--config", 8) == 0 || strncmp(arguments[i], "--log-file", 10) == 0;
    reads_again = reads_again || is_file;
  }
  manager = getenv("NOTIFY_SOCKET");
  if (manager != nullptr) manager = strdup(manager);
  // Whatever is opened below must not become a standard file.
  int spare = open("/dev/null", O_RDWR);
  while (spare >= 0 && spare <= STDERR_FILENO) spare = dup(spare);
  if (spare < 0) return 1;
  close(spare);
  int signals = OpenSignals();
  RaiseFileLimit();
  if (signals < 0 || !OpenMessages()) {
    Say("no socket for the bridge's messages: %s", strerror(errno));
    if (directory[0] != '\0') CloseMessages();
    return 1;
  }
  int code = Run(signals, arguments + 1);
  CloseMessages();
  return code;
}
