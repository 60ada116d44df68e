#include "stream_memory.h"


#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "addon.h"
#include "crash_point.h"
#include "error.h"
#include "fd_messages.h"
#include "stream_state.h"
#include "system_call.h"

namespace {

constexpr napi_type_tag kMemoryTag = {0x51f0c8d26e9b4a37, 0x8c3be1f7a2946d05};
constexpr size_t kPage = 4096;
// The state, and behind it what TypeScript keeps there.
constexpr size_t kControlSize = 8 * kPage;
// A ring begins again at its start when it is empty and got so far: what is used again and again stays in the caches.
constexpr uint32_t kFar = 16384;
Napi::Value CountOrThrow(Napi::Env env, ssize_t count) {
  if (count < 0 && count != -EAGAIN) throw SystemError(env, static_cast<int>(-count), "recvmmsg");
  return Napi::Number::New(env, count == -EAGAIN ? -1.0 : static_cast<double>(count));
}

}  // namespace

void StreamMemory::Init(Napi::Env env, Napi::Object exports) {
  using Self = StreamMemory;
  exports.Set("StreamMemory",
              DefineClass(env, "StreamMemory",
                          {InstanceMethod<&Self::Held<&Self::Begin>>("begin"),
                           InstanceMethod<&Self::Held<&Self::Load>>("load"),
                           InstanceMethod<&Self::Held<&Self::PeekMethod>>("peek"),
                           InstanceMethod<&Self::Held<&Self::ReceiveMethod>>("receive"),
                           InstanceMethod<&Self::Held<&Self::Queue>>("queue"),
                           InstanceMethod<&Self::Held<&Self::CommitMethod>>("commit"),
                           InstanceMethod<&Self::Held<&Self::SendMethod>>("send"),
                           InstanceMethod<&Self::Held<&Self::Retract>>("retract"),
                           InstanceMethod<&Self::Held<&Self::UnsentSize>>("unsentSize"),
                           InstanceMethod<&Self::Release>("release")}));
}

// The words; a file and an offset in it, or -1 for memory of its own; the sizes of the rings, powers of two.
StreamMemory::StreamMemory(const Napi::CallbackInfo& info) : Napi::ObjectWrap<StreamMemory>(info) {
  Napi::Env env = info.Env();
  words_ = Int32Array(info[0], "words", kWords).data;
  words_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
  int fd = Fd(info[1]);
  size_t offset = static_cast<size_t>(Integer(info[2], "offset"));
  received_size_ = static_cast<uint32_t>(Integer(info[3], "receivedSize", kPage, 1 << 30));
  unsent_size_ = static_cast<uint32_t>(Integer(info[4], "unsentSize", kPage, 1 << 30));
  if ((received_size_ & (received_size_ - 1)) != 0 || (unsent_size_ & (unsent_size_ - 1)) != 0) {
    throw Napi::RangeError::New(env, "a ring's size must be a power of two");
  }
  mapping_ = std::make_shared<StreamMapping>();
  if (const char* failed = mapping_->Map(fd, offset, {kControlSize, received_size_, unsent_size_}); failed != nullptr) {
    throw SystemError(env, errno, failed);
  }
  static_assert(sizeof(StreamState) <= kPage);
  state_ = reinterpret_cast<StreamState*>(mapping_->base());
  received_ = mapping_->base() + kControlSize;
  unsent_ = received_ + 2 * size_t{received_size_};
  using Kept = std::shared_ptr<StreamMapping>;
  auto part = [&](const char* name, void* data, size_t size) {
    info.This().As<Napi::Object>().Set(
        name,
        Napi::ArrayBuffer::New(env, data, size, [](Napi::Env, void*, Kept* kept) { delete kept; }, new Kept(mapping_)));
  };
  part("control", state_, kControlSize);
  part("received", received_, 2 * size_t{received_size_});
  if (napi_type_tag_object(env, info.This(), &kMemoryTag) != napi_ok) {
    throw Napi::Error::New(env, "cannot make a StreamMemory");
  }
}

StreamMemory* StreamMemory::Of(Napi::Env env, napi_value object) {
  bool is_memory = false;
  if (napi_check_object_type_tag(env, object, &kMemoryTag, &is_memory) != napi_ok || !is_memory) return nullptr;
  return Unwrap(Napi::Object(env, object));
}

// A new connection: nothing came, and nothing is to be sent. Positions go on, so that none is another client's.
Napi::Value StreamMemory::Begin(const Napi::CallbackInfo& info) {
  uint32_t end = Position(kEnd);
  uint32_t sent = Position(kSent);
  Store(&state_->receive.header.msg_len, kNoResult);
  Store(&state_->send.header.msg_len, kNoResult);
  Store(&state_->boundary, kNoBoundary);
  Store(&state_->dropping, 0u);
  Store(&state_->received, Checked(end));
  Store(&state_->sent, Checked(sent));
  Store(&state_->received_base, Checked(end));
  Store(&state_->unsent_base, Checked(sent));
  unsent_base_ = sent;
  words_[kBase] = static_cast<int32_t>(end);
  for (Word word : {kScan, kFloor, kHandled}) words_[word] = static_cast<int32_t>(end);
  handled_ = end - 1;
  Commit(end, sent);
  return info.Env().Undefined();
}

// What another process left: false when it is not as one leaves it, or nobody can go on from there. Can be done again.
Napi::Value StreamMemory::Load(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  StreamState& state = *state_;
  bool is_whole = state.dropping == 0 && (state.which == kFirst || state.which == kSecond);
  for (uint64_t word : {state.received, state.sent, state.received_base, state.unsent_base}) {
    is_whole = is_whole && IsChecked(word);
  }
  if (!is_whole) return Napi::Boolean::New(env, false);
  const Positions& positions = state.positions[state.which == kFirst ? 0 : 1];
  if (positions.check != positions.Check()) return Napi::Boolean::New(env, false);
  words_[kBase] = static_cast<int32_t>(state.received_base);
  unsent_base_ = static_cast<uint32_t>(state.unsent_base);
  handled_ = positions.handled;
  queued_ = positions.queued;
  words_[kQueued] = static_cast<int32_t>(queued_);
  if (!LoadReceived(handled_) || !LoadSent()) return Napi::Boolean::New(env, false);
  for (Word word : {kScan, kFloor, kHandled}) words_[word] = static_cast<int32_t>(handled_);
  return Napi::Boolean::New(env, true);
}

bool StreamMemory::LoadReceived(uint32_t handled) {
  StreamState& state = *state_;
  uint32_t received = static_cast<uint32_t>(state.received);
  if (received - handled > received_size_) return false;
  uint32_t result = state.receive.header.msg_len;
  if (state.receive.position == state.received && result != kNoResult) {
    if (result > received_size_ - (received - handled)) return false;
    received += result;
  }
  // Descriptors that the last call took from the socket are not to be had from there once more.
  bool is_last = static_cast<uint32_t>(state.receive.position) + result == received && result != kNoResult;
  words_[kHasFds] = is_last && state.receive.header.msg_hdr.msg_controllen > 0;
  StoreReceived(received);
  return true;
}

bool StreamMemory::LoadSent() {
  StreamState& state = *state_;
  uint32_t sent = static_cast<uint32_t>(state.sent);
  uint32_t start = state.boundary == kNoBoundary ? sent : static_cast<uint32_t>(state.boundary);
  if (state.boundary != kNoBoundary && !IsChecked(state.boundary)) return false;
  uint32_t result = state.send.header.msg_len;
  if (state.send.position == state.sent && result != kNoResult) {
    if (result > unsent_size_) return false;
    sent += result;
  }
  if (sent - start > unsent_size_) return false;
  // A message with descriptors is sent before it counts as queued, and the command as dealt with.
  if (static_cast<int32_t>(sent - queued_) > 0) {
    uint32_t end = static_cast<uint32_t>(words_[kEnd]);
    if (end - handled_ < kSizeOffset + sizeof(uint32_t)) return false;
    uint32_t command = SizeAt(Received(handled_));
    if (command > end - handled_) return false;
    // Those behind it that went by the same call are whole, too.
    uint32_t queued = queued_;
    while (static_cast<int32_t>(sent - queued) > 0) {
      uint32_t size = SizeAt(Unsent(queued));
      if (size > unsent_size_) return false;
      queued += size;
    }
    Commit(handled_ + command, queued);
  }
  if (queued_ - sent > unsent_size_) return false;
  if (sent == queued_) start = sent;
  // The message that was being sent.
  while (start != sent) {
    uint32_t size = SizeAt(Unsent(start));
    if (size > queued_ - start) return false;
    if (size > sent - start) break;
    start += size;
  }
  Store(&state.boundary, start == sent ? kNoBoundary : Checked(start));
  // What is left of it.
  words_[kReplied] = start == sent ? 0 : static_cast<int32_t>(SizeAt(Unsent(start)) - (sent - start));
  Store(&state.sent, Checked(sent));
  words_[kSent] = static_cast<int32_t>(sent);
  return true;
}

// Of a message; never 0, so that whoever goes from one to the next comes to an end.
uint32_t StreamMemory::SizeAt(const uint8_t* message) const {
  uint32_t size;
  memcpy(&size, message + kSizeOffset, sizeof size);
  return std::max(size, 1u);
}

void StreamMemory::StoreReceived(uint32_t position) {
  words_[kEnd] = static_cast<int32_t>(position);
  Store(&state_->received, Checked(position));
}

// As much as is wanted, behind what somebody still looks at, or has to see again after a crash.
size_t StreamMemory::Room() const {
  uint32_t floor = Position(kFloor);
  uint32_t start = static_cast<int32_t>(floor - handled_) < 0 ? floor : handled_;
  size_t used = std::min(Position(kEnd) - start, received_size_);
  return std::min(static_cast<size_t>(std::max(words_[kRoom], 0)), received_size_ - used);
}

void StreamMemory::Rebase() {
  uint32_t end = Position(kEnd);
  if (end != handled_ || end != Position(kScan) || end != Position(kFloor)) return;
  if (end - Position(kBase) < kFar) return;
  words_[kBase] = static_cast<int32_t>(end);
  Store(&state_->received_base, Checked(end));
}

// Into the place where they are going to be received.
ssize_t StreamMemory::Peek(int fd, size_t length, int32_t* fds, size_t most, bool* is_cut) {
  mmsghdr header{};
  ssize_t seen = ReceiveOnce(fd, {Received(Position(kEnd)), length}, fds, most, MSG_PEEK, &header, is_cut);
  // A socket that the peer made, and has as well, may be another one by now: it is readable for good, and nothing is
  // seen, of a byte out of band.
  if (seen == -EAGAIN) TakeUrgentInline(fd);
  return seen;
}

ssize_t StreamMemory::Consume(int fd, size_t length, int32_t* fds, size_t most, bool* is_cut) {
  Call& call = state_->receive;
  Store(&call.header.msg_len, kNoResult);
  Store(&call.position, state_->received);
  ssize_t count = ReceiveOnce(fd, {Received(Position(kEnd)), length}, fds, most, 0, &call.header, is_cut);
  CrashPoint();
  if (count > 0) StoreReceived(Position(kEnd) + static_cast<uint32_t>(count));
  return count;
}

ssize_t StreamMemory::Receive(int fd, int32_t* fds, bool* has_fds) {
  fds[0] = 0;
  *has_fds = false;
  if (int error = Dropping(fd); error != 0) return -error;
  if (state_->dropping != 0) Store(&state_->dropping, 0u);
  Rebase();
  size_t room = Room();
  if (room == 0) return -EAGAIN;
  size_t most = std::min(static_cast<size_t>(std::max(words_[kMostFds], 0)), kMaxFds);
  bool is_cut = false;
  bool keeps = words_[kPeeks] != 0;
  // More may come than there is room for, which the kernel would drop here: so it is looked at first. So it is where
  // descriptors are kept before they are received.
  if (!keeps && most == kMaxFds) return Consume(fd, room, fds, kMaxFds, &is_cut);
  ssize_t seen = Peek(fd, room, fds, most, &is_cut);
  if (seen <= 0) return seen;
  size_t length = static_cast<size_t>(seen);
  if (is_cut) {
    Store(&state_->dropping, 1u);
    int error = DropReceived(fd, length, fds);
    if (error != 0) return -error;
    StoreReceived(Position(kEnd) + static_cast<uint32_t>(length));
    return seen;
  }
  if (keeps && fds[0] > 0) {
    *has_fds = true;
    return seen;
  }
  // What was looked at is here already, or there is none. But Linux also shows the descriptors of a message behind the
  // bytes that were asked for: they are taken with that one.
  int32_t none;
  bool took_fds = false;
  ssize_t received = Consume(fd, length, &none, 0, &took_fds);
  if (!took_fds) CloseFds(fds);
  return received;
}

uint8_t* StreamMemory::Reserve(size_t ahead, size_t length) {
  uint32_t queued = Position(kQueued);
  if (ahead == 0 && queued == Position(kSent) && queued == queued_ && queued - unsent_base_ >= kFar) {
    unsent_base_ = queued;
    Store(&state_->unsent_base, Checked(queued));
  }
  // A message that is being sent is there from its start.
  if (queued - Position(kSent) + ahead + length > unsent_size_ / 2) return nullptr;
  return Unsent(queued + static_cast<uint32_t>(ahead));
}

void StreamMemory::Commit(uint32_t handled, uint32_t queued) {
  words_[kQueued] = static_cast<int32_t>(queued);
  words_[kHandled] = static_cast<int32_t>(handled);
  if (handled == handled_ && queued == queued_) return;
  handled_ = handled;
  queued_ = queued;
  bool is_first = state_->which != kFirst;
  Positions& other = state_->positions[is_first ? 0 : 1];
  other.handled = handled;
  other.queued = queued;
  other.check = other.Check();
  Store(&state_->which, is_first ? kFirst : kSecond);
}

int32_t StreamMemory::Send(int fd, size_t length, msghdr* control) {
  StreamState& state = *state_;
  uint32_t sent = Position(kSent);
  Call& call = state.send;
  iovec vector{Unsent(sent), length};
  Store(&call.header.msg_len, kNoResult);
  Store(&call.position, state.sent);
  call.header.msg_hdr = {};
  if (control != nullptr) call.header.msg_hdr = *control;
  call.header.msg_hdr.msg_iov = &vector;
  call.header.msg_hdr.msg_iovlen = 1;
  long count;
  do {
    count = SystemCall(SYS_sendmmsg, fd, Argument(&call.header), 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (count == -EINTR);
  CrashPoint();
  if (count == -EAGAIN) return 0;
  if (count < 0) return static_cast<int32_t>(count);
  uint32_t moved = call.header.msg_len;
  // The next one finds the message's start from this call, or from here.
  if (moved < length && state.boundary == kNoBoundary) Store(&state.boundary, Checked(sent));
  words_[kSent] = static_cast<int32_t>(sent + moved);
  Store(&state.sent, Checked(sent + moved));
  if (moved == length && state.boundary != kNoBoundary) Store(&state.boundary, kNoBoundary);
  return static_cast<int32_t>(moved);
}

// The fd, and an Int32Array for descriptors: how many bytes there are to receive with them, or came without any.
Napi::Value StreamMemory::PeekMethod(const Napi::CallbackInfo& info) {
  Elements<int32_t> fds = Int32Array(info[1], "fds", 1 + kMaxFds);
  bool has_fds = false;
  ssize_t count = Receive(Fd(info[0]), fds.data, &has_fds);
  words_[kHasFds] = has_fds;
  return CountOrThrow(info.Env(), count);
}

// The fd, a length that was peeked, and an Int32Array for descriptors.
Napi::Value StreamMemory::ReceiveMethod(const Napi::CallbackInfo& info) {
  size_t length = static_cast<size_t>(Integer(info[1], "length", 1, static_cast<double>(Room())));
  Elements<int32_t> fds = Int32Array(info[2], "fds", 1 + kMaxFds);
  bool is_cut = false;
  return CountOrThrow(info.Env(), Consume(Fd(info[0]), length, fds.data, kMaxFds, &is_cut));
}

// bytes[offset, offset + length) behind what is queued; false when there is no room. `commit` follows.
Napi::Value StreamMemory::Queue(const Napi::CallbackInfo& info) {
  Bytes bytes = Slice(info[0], info[1], info[2]);
  uint8_t* place = Reserve(0, bytes.length);
  if (place == nullptr) return Napi::Boolean::New(info.Env(), false);
  memcpy(place, bytes.data, bytes.length);
  words_[kQueued] = static_cast<int32_t>(Position(kQueued) + static_cast<uint32_t>(bytes.length));
  return Napi::Boolean::New(info.Env(), true);
}

Napi::Value StreamMemory::CommitMethod(const Napi::CallbackInfo& info) {
  Commit(static_cast<uint32_t>(Integer(info[0], "handled")), Position(kQueued));
  return info.Env().Undefined();
}

// The fd, a length, and an array of descriptors.
Napi::Value StreamMemory::SendMethod(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int fd = Fd(info[0]);
  size_t waits = Position(kQueued) - Position(kSent);
  size_t length = static_cast<size_t>(Integer(info[1], "length", 1, static_cast<double>(waits)));
  FdControl control;
  msghdr message{};
  PutFds(info[2], &control, &message);
  int32_t sent = Send(fd, length, &message);
  if (sent < 0) throw SystemError(env, -sent, "sendmmsg");
  return Napi::Number::New(env, sent);
}

// What was received last, from a position on, is dealt with, and its place free.
Napi::Value StreamMemory::Retract(const Napi::CallbackInfo& info) {
  uint32_t position = static_cast<uint32_t>(Integer(info[0], "position", 0, UINT32_MAX));
  Store(&state_->receive.header.msg_len, kNoResult);
  words_[kScan] = static_cast<int32_t>(position);
  StoreReceived(position);
  return info.Env().Undefined();
}

// What the message's header says that begins at a position of what is to be sent.
Napi::Value StreamMemory::UnsentSize(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), SizeAt(Unsent(static_cast<uint32_t>(Integer(info[0], "position")))));
}

// Unmaps it at a connection's end, whoever still refers to it: a collection of garbage may be far away. Its buffers are
// empty then. Not while a Stream that has it is called by the event loop.
Napi::Value StreamMemory::Release(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (mapping_ == nullptr) return env.Undefined();
  for (const char* name : {"control", "received"}) {
    Napi::Value part = info.This().As<Napi::Object>().Get(name);
    if (!part.IsArrayBuffer()) throw Napi::Error::New(env, "a StreamMemory without its buffers");
    part.As<Napi::ArrayBuffer>().Detach();
  }
  mapping_->End();
  mapping_.reset();
  state_ = nullptr;
  received_ = unsent_ = nullptr;
  return env.Undefined();
}

void InitStreamMemory(Napi::Env env, Napi::Object exports) { StreamMemory::Init(env, exports); }
