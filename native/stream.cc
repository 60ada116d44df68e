// What a Poll does with a connected socket around its callback (poll_task.h): it receives before, and sends after. The
// two calls into the addon that this spares are most of what a short message costs beside its system calls. A read of a
// register whose value is in memory is answered without a call at all.
//
// JavaScript and C++ tell each other by an Int32Array, the control words, which cost no call either.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "access_path.h"
#include "addon.h"
#include "arguments.h"
#include "device_access.h"
#include "error.h"
#include "fd_messages.h"
#include "poll_task.h"
#include "register_memory.h"
#include "system_call.h"

namespace {

// The control words; native/index.ts has the same.
enum Word : size_t { kOffset, kRoom, kReceived, kReply, kReplied, kReads, kServed, kMostFds, kAnswered, kWords };

// In kReceived: nothing was received. Others are byte counts, 0 for the end, or negative errnos.
constexpr int32_t kNothing = INT32_MIN;
// The event of a reply that was not sent whole; kReplied tells how much was, or a negative errno. kAnswered is the
// length of one that the device gave at once, 0 for others.
constexpr int kUnsent = 8;
constexpr napi_type_tag kStreamTag = {0x6b1d7c0f94be4a51, 0x9d2f51c3a7e84460};

class Stream : public Napi::ObjectWrap<Stream>, public PollTask, private ClientSocket {
 public:
  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("Stream", DefineClass(env, "Stream",
                                      {
                                          InstanceMethod<&Stream::ReceiveInto>("receiveInto"),
                                          InstanceMethod<&Stream::ReplyFrom>("replyFrom"),
                                          InstanceMethod<&Stream::ReadsFrom>("readsFrom"),
                                          InstanceMethod<&Stream::AccessesBy>("accessesBy"),
                                          InstanceMethod<&Stream::AnswersBy>("answersBy"),
                                      }));
  }

  explicit Stream(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Stream>(info), fd_(Fd(info[0])) {
    words_ = Words(info[1], "words", kWords, &words_kept_).data;
    fds_ = Words(info[2], "fds", 1, &fds_kept_);
    if (napi_type_tag_object(info.Env(), info.This(), &kStreamTag) != napi_ok) {
      throw Napi::Error::New(info.Env(), "cannot make a Stream");
    }
  }

  int Before(int events) override {
    words_[kReceived] = kNothing;
    // First what waits to be sent, which may make room.
    if ((events & UV_WRITABLE) != 0) return events & ~UV_READABLE;
    int32_t offset = words_[kOffset];
    int32_t room = words_[kRoom];
    if (room <= 0) return events & UV_DISCONNECT;
    if (offset < 0 || static_cast<size_t>(offset) + static_cast<size_t>(room) > receive_.length) return UV_READABLE;
    size_t most = std::min(static_cast<size_t>(std::max(words_[kMostFds], 0)), fds_.length - 1);
    ssize_t received = ReceiveMessage(fd_, {receive_.data + offset, static_cast<size_t>(room)}, fds_.data, most);
    if (received == -EAGAIN) return events & UV_DISCONNECT;
    // At the start of the buffer nothing that came before is in flight or waits.
    int more = 0;
    if (offset == 0 && words_[kReads] != 0 && received > 0 && fds_.data[0] == 0) {
      size_t length = static_cast<size_t>(received);
      size_t done = path_ == nullptr ? 0 : path_->FromClient(receive_.data, length, registers_, &more);
      if (done == length) return more;
      if (done > 0) {
        received -= done;
        memmove(receive_.data, receive_.data + done, static_cast<size_t>(received));
      } else if (path_ == nullptr || !path_->IsBusy()) {
        ssize_t sent = AnswerFromMemory(length);
        if (sent > 0) return 0;
        if (sent < 0) received = sent;
        else if (device_ != nullptr && AnswerByDevice(length, &more)) return more;
      }
    }
    words_[kReceived] = static_cast<int32_t>(received);
    return events | more;
  }

  int After() override {
    int32_t length = words_[kReply];
    if (length <= 0) return 0;
    words_[kReply] = 0;
    words_[kReceived] = kNothing;
    words_[kReplied] = SendReply(static_cast<size_t>(length));
    if (words_[kReplied] == length) return 0;
    return kUnsent;
  }

 private:
  static Elements<int32_t> Words(Napi::Value value, const char* name, size_t least, Napi::ObjectReference* kept) {
    Elements<int32_t> words = Int32Array(value, name, least);
    *kept = Napi::Persistent(value.As<Napi::Object>());
    return words;
  }

  // How much of it was sent, or a negative errno.
  int32_t SendReply(size_t length) {
    if (length > reply_.length) return -EINVAL;
    return Send(reply_.data, length);
  }

  bool MaySend() const override { return words_[kReads] != 0; }

  int32_t Send(const uint8_t* bytes, size_t length) override {
    long sent;
    do {
      sent = SystemCall(SYS_sendto, fd_, Argument(bytes), static_cast<long>(length), MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent == -EINTR);
    return sent == -EAGAIN ? 0 : static_cast<int32_t>(sent);
  }

  // What was sent, whole; 0 when JavaScript is to answer, or a negative errno.
  int32_t AnswerFromMemory(size_t received) {
    uint8_t reply[RegisterMemory::kMostReply];
    size_t length = registers_.Answer(receive_.data, received, reply);
    if (length == 0) return 0;
    int32_t sent = Send(reply, length);
    if (sent <= 0) return sent;
    words_[kServed]++;
    // Linux takes so few bytes whole or not at all.
    return static_cast<size_t>(sent) == length ? sent : -EIO;
  }

  // Whether the device has dealt with what was received.
  bool AnswerByDevice(size_t length, int* events) {
    MessageHeader header;
    RegionAccess access;
    if (length < sizeof header) return false;
    std::memcpy(&header, receive_.data, sizeof header);
    if (header.size != length || !device_->Takes(receive_.data, header, &access)) return false;
    uint8_t reply[DeviceAccess::kMostReply];
    size_t answer = device_->Carry(receive_.data, header, access, reply, true);
    // The device may have ended the connection.
    if (answer == 0 || device_ == nullptr) return true;
    // Or it has sent something that waits now: the answer comes behind that.
    int32_t sent = words_[kReads] == 0 ? 0 : Send(reply, answer);
    if (static_cast<size_t>(sent) == answer) return true;
    std::memcpy(answers_.data, reply, answer);
    words_[kReplied] = sent;
    words_[kAnswered] = static_cast<int32_t>(answer);
    *events = kUnsent;
    return true;
  }

  bool TakeRan() override { return device_ != nullptr && device_->TakeRan(); }

  // Undefined: none. `bytes` has the answers.
  Napi::Value AnswersBy(const Napi::CallbackInfo& info) {
    device_ = nullptr;
    device_kept_.Reset();
    answers_kept_.Reset();
    if (info[0].IsUndefined()) return info.Env().Undefined();
    DeviceAccess* device = DeviceAccess::Of(info.Env(), info[0]);
    if (device == nullptr) throw Napi::TypeError::New(info.Env(), "device must be a DeviceAccess");
    answers_ = ByteArray(info[1], "bytes");
    if (answers_.length < DeviceAccess::kMostReply) throw Napi::RangeError::New(info.Env(), "bytes is too short");
    device_ = device;
    device_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
    answers_kept_ = Napi::Persistent(info[1].As<Napi::Object>());
    return info.Env().Undefined();
  }

  Napi::Value ReceiveInto(const Napi::CallbackInfo& info) {
    receive_ = ByteArray(info[0], "bytes");
    receive_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
    return info.Env().Undefined();
  }

  Napi::Value ReplyFrom(const Napi::CallbackInfo& info) {
    reply_ = ByteArray(info[0], "bytes");
    reply_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
    return info.Env().Undefined();
  }

  Napi::Value ReadsFrom(const Napi::CallbackInfo& info) {
    registers_.Set(info[0], info[1]);
    return info.Env().Undefined();
  }

  Napi::Value AccessesBy(const Napi::CallbackInfo& info) {
    AccessPath* path = nullptr;
    if (!info[0].IsUndefined()) {
      path = AccessPath::Of(info.Env(), info[0]);
      if (path == nullptr) throw Napi::TypeError::New(info.Env(), "path must be an AccessPath");
    }
    if (path_ != nullptr) path_->Leave(this);
    path_ = path;
    path_kept_.Reset();
    if (path == nullptr) return info.Env().Undefined();
    path_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
    path->SetClient(this);
    return info.Env().Undefined();
  }

  int fd_;
  RegisterMemory registers_;
  AccessPath* path_ = nullptr;
  DeviceAccess* device_ = nullptr;
  // Addresses of what JavaScript owns: kept alive here, and never transferred by our own code. Asking V8 for an address
  // also moves a small array out of its heap, where it would not stay put.
  int32_t* words_;
  Elements<int32_t> fds_;
  Bytes receive_{};
  Bytes reply_{};
  Bytes answers_{};
  Napi::ObjectReference words_kept_;
  Napi::ObjectReference fds_kept_;
  Napi::ObjectReference receive_kept_;
  Napi::ObjectReference reply_kept_;
  Napi::ObjectReference path_kept_;
  Napi::ObjectReference device_kept_;
  Napi::ObjectReference answers_kept_;
};

}  // namespace

PollTask* StreamTask(Napi::Env env, napi_value object) {
  bool isStream = false;
  if (napi_check_object_type_tag(env, object, &kStreamTag, &isStream) != napi_ok || !isStream) return nullptr;
  return Stream::Unwrap(Napi::Object(env, object));
}

void InitStream(Napi::Env env, Napi::Object exports) { Stream::Init(env, exports); }
