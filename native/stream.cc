// What a Poll does with a connected socket around its callback (poll_task.h): it receives before, and sends after. The
// two calls into the addon that this spares are most of what a short message costs beside its system calls. A read of a
// register whose value is in memory is answered without a call at all.
//
// JavaScript and C++ tell each other by the words of a StreamMemory, which cost no call either.
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
#include "stream_memory.h"

namespace {

using Word = StreamMemory::Word;

// The event of a reply that was not sent whole; kReplied tells how much was, or a negative errno.
constexpr int kUnsent = 8;
constexpr napi_type_tag kStreamTag = {0x6b1d7c0f94be4a51, 0x9d2f51c3a7e84460};

class Stream : public Napi::ObjectWrap<Stream>, public PollTask, private ClientSocket {
 public:
  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("Stream", DefineClass(env, "Stream",
                                      {
                                          InstanceMethod<&Stream::ReplyFrom>("replyFrom"),
                                          InstanceMethod<&Stream::ReadsFrom>("readsFrom"),
                                          InstanceMethod<&Stream::AccessesBy>("accessesBy"),
                                          InstanceMethod<&Stream::AnswersBy>("answersBy"),
                                      }));
  }

  explicit Stream(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Stream>(info), fd_(Fd(info[0])) {
    memory_ = StreamMemory::Of(info.Env(), info[1]);
    if (memory_ == nullptr) throw Napi::TypeError::New(info.Env(), "memory must be a StreamMemory");
    memory_kept_ = Napi::Persistent(info[1].As<Napi::Object>());
    words_ = memory_->words();
    fds_ = Int32Array(info[2], "fds", 1 + kMaxFds);
    fds_kept_ = Napi::Persistent(info[2].As<Napi::Object>());
    if (napi_type_tag_object(info.Env(), info.This(), &kStreamTag) != napi_ok) {
      throw Napi::Error::New(info.Env(), "cannot make a Stream");
    }
  }

  int Before(int events) override {
    words_[Word::kReceived] = StreamMemory::kNothing;
    // First what waits to be sent, which may make room.
    if ((events & UV_WRITABLE) != 0) return events & ~UV_READABLE;
    if (words_[Word::kRoom] <= 0) return events & UV_DISCONNECT;
    bool has_fds = false;
    ssize_t received = memory_->Receive(fd_, fds_.data, &has_fds);
    if (received == -EAGAIN) return events & UV_DISCONNECT;
    if (has_fds) {
      CloseFds(fds_.data);
      return events | UV_READABLE;
    }
    int more = 0;
    if (words_[Word::kReads] != 0 && received > 0 && fds_.data[0] == 0) {
      size_t done = path_ == nullptr ? 0 : path_->FromClient(registers_, &more);
      if (done == 0 && (path_ == nullptr || !path_->IsBusy())) {
        int answered = AnswerFromMemory();
        if (answered < 0 && device_ != nullptr) answered = AnswerByDevice();
        if (answered >= 0) return answered;
      }
      if (memory_->Position(Word::kScan) == memory_->Position(Word::kEnd)) return more;
    }
    words_[Word::kReceived] = static_cast<int32_t>(received);
    return events | more;
  }

  int After() override {
    uint32_t queued = memory_->Position(Word::kQueued);
    uint32_t handled = memory_->Position(Word::kHandled);
    int32_t length = words_[Word::kReply];
    if (length <= 0) {
      memory_->Commit(handled, queued);
      return 0;
    }
    words_[Word::kReply] = 0;
    words_[Word::kReceived] = StreamMemory::kNothing;
    size_t size = static_cast<size_t>(length);
    uint8_t* place = size > reply_.length ? nullptr : memory_->Reserve(0, size);
    if (place == nullptr) {
      words_[Word::kReplied] = -EINVAL;
      return kUnsent;
    }
    memcpy(place, reply_.data, size);
    memory_->Commit(handled, queued + static_cast<uint32_t>(size));
    return SendQueued() ? 0 : kUnsent;
  }

 private:
  StreamMemory& memory() override { return *memory_; }

  bool SendQueued() override {
    size_t length = memory_->Position(Word::kQueued) - memory_->Position(Word::kSent);
    if (length == 0) return true;
    words_[Word::kReplied] = memory_->Send(fd_, length);
    return words_[Word::kReplied] == static_cast<int32_t>(length);
  }

  // The events for a call of JavaScript's, or -1 when it is to answer.
  int AnswerFromMemory() {
    uint32_t scan = memory_->Position(Word::kScan);
    uint32_t end = memory_->Position(Word::kEnd);
    if (memory_->Position(Word::kQueued) != memory_->Position(Word::kSent)) return -1;
    uint8_t* reply = memory_->Reserve(0, RegisterMemory::kMostReply);
    size_t length = reply == nullptr ? 0 : registers_.Answer(memory_->Received(scan), end - scan, reply);
    if (length == 0) return -1;
    words_[Word::kScan] = static_cast<int32_t>(end);
    words_[Word::kFloor] = static_cast<int32_t>(end);
    memory_->Commit(end, memory_->Position(Word::kQueued) + static_cast<uint32_t>(length));
    words_[Word::kServed]++;
    return SendQueued() ? 0 : kUnsent;
  }

  // The same where the device deals with what was received.
  int AnswerByDevice() {
    uint32_t scan = memory_->Position(Word::kScan);
    uint32_t end = memory_->Position(Word::kEnd);
    const uint8_t* message = memory_->Received(scan);
    MessageHeader header;
    RegionAccess access;
    if (end - scan < sizeof header) return -1;
    std::memcpy(&header, message, sizeof header);
    if (header.size != end - scan || !device_->Takes(message, header, &access)) return -1;
    words_[Word::kScan] = static_cast<int32_t>(end);
    uint8_t answer[DeviceAccess::kMostReply];
    size_t length = device_->Carry(message, header, access, answer, true);
    words_[Word::kFloor] = static_cast<int32_t>(end);
    // The device may have sent something that waits now: the answer comes behind it. Or it has ended the connection.
    uint8_t* place = length == 0 || device_ == nullptr ? nullptr : memory_->Reserve(0, length);
    if (place == nullptr) length = 0;
    else memcpy(place, answer, length);
    memory_->Commit(end, memory_->Position(Word::kQueued) + static_cast<uint32_t>(length));
    if (words_[Word::kReads] != 0) return SendQueued() ? 0 : kUnsent;
    words_[Word::kReplied] = 0;
    return length == 0 ? 0 : kUnsent;
  }

  bool TakeRan() override { return device_ != nullptr && device_->TakeRan(); }

  // Undefined: none.
  Napi::Value AnswersBy(const Napi::CallbackInfo& info) {
    device_ = nullptr;
    device_kept_.Reset();
    if (info[0].IsUndefined()) return info.Env().Undefined();
    DeviceAccess* device = DeviceAccess::Of(info.Env(), info[0]);
    if (device == nullptr) throw Napi::TypeError::New(info.Env(), "device must be a DeviceAccess");
    device_ = device;
    device_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
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
  Bytes reply_{};
  StreamMemory* memory_;
  Napi::ObjectReference memory_kept_;
  Napi::ObjectReference fds_kept_;
  Napi::ObjectReference reply_kept_;
  Napi::ObjectReference path_kept_;
  Napi::ObjectReference device_kept_;
};

}  // namespace

PollTask* StreamTask(Napi::Env env, napi_value object) {
  bool isStream = false;
  if (napi_check_object_type_tag(env, object, &kStreamTag, &isStream) != napi_ok || !isStream) return nullptr;
  return Stream::Unwrap(Napi::Object(env, object));
}

void InitStream(Napi::Env env, Napi::Object exports) { Stream::Init(env, exports); }
