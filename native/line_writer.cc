// Lines of a log, written to a file descriptor by a thread: a pipe that nobody reads, a terminal that is held and a
// disk that hangs block the thread alone. What has no room meanwhile is lost and counted, as is what cannot be written;
// a line says so as soon as one can be written again.
//
// The descriptor is shared with other processes, as standard error is, so it is not made non-blocking. The thread is
// detached: it may be in write() forever, also while the process ends.
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "addon.h"
#include "arguments.h"
#include "error.h"

namespace {

class Lines {
 public:
  Lines(int fd, size_t capacity, std::string notice) : fd_(fd), capacity_(capacity), notice_(std::move(notice)) {
    added_.reserve(capacity);
  }

  // A line that has no room is lost; one alone always has.
  void Add(const std::string& line) {
    {
      std::lock_guard lock(mutex_);
      size_t waiting = added_.size() + writing_;
      if (waiting > 0 && waiting + line.size() > capacity_) {
        lost_++;
        reason_ = 0;
        return;
      }
      added_ += line;
    }
    changed_.notify_all();
  }

  // Waits until nothing is left to be written, but no longer than that. Returns whether nothing is.
  bool Flush(std::chrono::milliseconds most) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, most, [this] { return added_.empty() && writing_ == 0; });
  }

  // The thread ends once it has written what was added.
  void Close() {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
  }

  void Run() {
    pthread_setname_np(pthread_self(), "log");
    std::string lines;
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return !added_.empty() || closing_; });
      if (added_.empty()) return;
      lines.swap(added_);
      writing_ = lines.size();
      // There was no room for these behind the lines that are written now; for what is lost meanwhile, behind the next
      // ones.
      uint64_t lost = lost_;
      lock.unlock();
      int error = 0;
      uint64_t failed = Write(lines, &error);
      lines.clear();
      lock.lock();
      if (failed > 0) reason_ = error;
      lost_ += failed;
      lost = added_.empty() ? lost_ : lost + failed;
      if (lost > 0) Tell(lost, lock);
      writing_ = 0;
      changed_.notify_all();
    }
  }

 private:
  // Says how many lines were lost.
  void Tell(uint64_t lost, std::unique_lock<std::mutex>& lock) {
    char reason[64] = "not written fast enough";
    if (reason_ != 0) uv_err_name_r(-reason_, reason, sizeof reason);
    lock.unlock();
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t milliseconds = int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
    std::string line = notice_ + ",\"time\":" + std::to_string(milliseconds) + ",\"lost\":" + std::to_string(lost) +
                       ",\"reason\":\"" + reason + "\"}\n";
    int error = 0;
    uint64_t failed = Write(line, &error);
    lock.lock();
    if (failed == 0) lost_ -= lost;
    else reason_ = error;
  }

  // Whole lines, together as many as a pipe takes without parting them from each other by what others write to it.
  // Returns how many were not written, with the errno of the last of them.
  uint64_t Write(const std::string& lines, int* error) {
    uint64_t lost = 0;
    size_t start = 0;
    while (start < lines.size()) {
      size_t end = LineEnd(lines, start);
      while (end < lines.size() && LineEnd(lines, end) - start <= PIPE_BUF) end = LineEnd(lines, end);
      size_t written = 0;
      // The rest of a line that could not be written whole ends here.
      int failure = within_line_ ? WriteBytes("\n", 1, &written) : 0;
      if (failure == 0) {
        within_line_ = false;
        failure = WriteBytes(lines.data() + start, end - start, &written);
        if (written > 0) within_line_ = lines[start + written - 1] != '\n';
      } else {
        written = 0;
      }
      if (failure != 0) {
        *error = failure;
        lost += static_cast<uint64_t>(std::count(lines.begin() + start + written, lines.begin() + end, '\n'));
      }
      start = end;
    }
    return lost;
  }

  static size_t LineEnd(const std::string& lines, size_t start) {
    size_t newline = lines.find('\n', start);
    return newline == std::string::npos ? lines.size() : newline + 1;
  }

  // Returns 0 or an errno; `written` tells how far it came.
  int WriteBytes(const char* bytes, size_t length, size_t* written) {
    *written = 0;
    while (*written < length) {
      ssize_t count = write(fd_, bytes + *written, length - *written);
      if (count >= 0) {
        *written += static_cast<size_t>(count);
        continue;
      }
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return errno;
      // Another process made it non-blocking.
      pollfd ready{fd_, POLLOUT, 0};
      if (poll(&ready, 1, -1) > 0 && (ready.revents & POLLOUT) == 0) return EIO;
    }
    return 0;
  }

  const int fd_;
  const size_t capacity_;
  const std::string notice_;
  bool within_line_ = false;  // the thread's alone
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string added_;
  size_t writing_ = 0;
  uint64_t lost_ = 0;
  int reason_ = 0;  // an errno, or 0 for want of room
  bool closing_ = false;
};

class LineWriter : public Napi::ObjectWrap<LineWriter> {
 public:
  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("LineWriter", DefineClass(env, "LineWriter",
                                          {
                                              InstanceMethod<&LineWriter::Write>("write"),
                                              InstanceMethod<&LineWriter::Flush>("flush"),
                                          }));
  }

  explicit LineWriter(const Napi::CallbackInfo& info) : Napi::ObjectWrap<LineWriter>(info) {
    int fd = Fd(info[0]);
    size_t capacity = static_cast<size_t>(Integer(info[1], "capacity", 1, INT32_MAX));
    lines_ = std::make_shared<Lines>(fd, capacity, Text(info[2], "notice"));
    // Signals are for the threads that expect them; the new thread inherits this mask.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    try {
      std::thread([lines = lines_] { lines->Run(); }).detach();
    } catch (const std::system_error& failure) {
      error = failure.code().value();
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error != 0) throw SystemError(info.Env(), error, "pthread_create");
  }

  ~LineWriter() override {
    if (lines_) lines_->Close();
  }

 private:
  Napi::Value Write(const Napi::CallbackInfo& info) {
    if (!info[0].IsString()) throw Napi::TypeError::New(info.Env(), "lines must be a string");
    lines_->Add(info[0].As<Napi::String>().Utf8Value());
    return info.Env().Undefined();
  }

  Napi::Value Flush(const Napi::CallbackInfo& info) {
    std::chrono::milliseconds most(Integer(info[0], "milliseconds", 0, INT32_MAX));
    return Napi::Boolean::New(info.Env(), lines_->Flush(most));
  }

  std::shared_ptr<Lines> lines_;
};

}  // namespace

void InitLineWriter(Napi::Env env, Napi::Object exports) { LineWriter::Init(env, exports); }
