// Plain register accesses only (access_check.h), one at a time for each client, in order. Whatever else comes, and
// whatever cannot be done at once (no buffer in the ring, no room in the socket, a turn that is over, a client or a
// device that breaks the rules), is left in its place for TypeScript, which sees the message as if it had just come.
#include "access_path.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "addon.h"
#include "crash_point.h"
#include "eventfd.h"

namespace {

constexpr napi_type_tag kPathTag = {0x3f52c09a7be14d86, 0xa1c4de207f6b9358};

// Entries that a device process which answers nothing can keep; the next access is TypeScript's, as is what follows.
constexpr size_t kMostAbandoned = PathState::kPending - 1;
constexpr uint32_t kMostErrno = 4095;
constexpr uint32_t kEio = 5;
// What is answered by one turn of the path at most, in bytes.
constexpr size_t kMostReplies = 16384;
}  // namespace

void AccessPath::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("AccessPath", DefineClass(env, "AccessPath",
                                        {
                                            InstanceMethod<&AccessPath::Rings>("rings"),
                                            InstanceMethod<&AccessPath::Memory>("memory"),
                                            InstanceMethod<&AccessPath::Registers>("registers"),
                                            InstanceMethod<&AccessPath::Deliver>("deliver"),
                                            InstanceMethod<&AccessPath::Measure>("measure"),
                                        }));
}

AccessPath::AccessPath(const Napi::CallbackInfo& info) : Napi::ObjectWrap<AccessPath>(info) {
  Napi::Env env = info.Env();
  Bytes state = ByteArray(info[0], "state");
  constexpr size_t kLayoutWords = sizeof kLayout / sizeof *kLayout;
  const uint32_t* layout = TypedWords<uint32_t>(info[1], napi_uint32_array, "layout", kLayoutWords, nullptr);
  if (!std::equal(kLayout, kLayout + kLayoutWords, layout) || state.length < sizeof(PathState) ||
      reinterpret_cast<uintptr_t>(state.data) % alignof(PathState) != 0) {
    throw Napi::Error::New(env, "the access path's state is laid out otherwise: the addon is of another build");
  }
  state_ = reinterpret_cast<PathState*>(state.data);
  state_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
  all_turns_ = TypedWords<uint32_t>(info[2], napi_int32_array, "turns", 1, &all_turns_kept_);
  own_share_ = TypedWords<uint32_t>(info[3], napi_int32_array, "share", kShareWords, &own_share_kept_);
  if (napi_type_tag_object(env, info.This(), &kPathTag) != napi_ok) throw Napi::Error::New(env, "cannot make a path");
}

AccessPath* AccessPath::Of(Napi::Env env, napi_value object) {
  bool is_path = false;
  if (napi_check_object_type_tag(env, object, &kPathTag, &is_path) != napi_ok || !is_path) return nullptr;
  return Unwrap(Napi::Object(env, object));
}

// Two rings, each as [state, descriptors, available, used, eventIndex]; or nothing, for none.
Napi::Value AccessPath::Rings(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  to_device_.Unset();
  from_device_.Unset();
  rings_kept_.Reset();
  if (info[0].IsUndefined()) return env.Undefined();
  Napi::Array both = Napi::Array::New(env, 2);
  for (uint32_t n = 0; n < 2; n++) {
    if (!info[n].IsArray()) throw Napi::TypeError::New(env, "a ring must be an array");
    Napi::Array parts = info[n].As<Napi::Array>();
    auto* state = reinterpret_cast<RingState*>(
        TypedWords<int32_t>(parts.Get(0u), napi_int32_array, "state", sizeof(RingState) / sizeof(int32_t), nullptr));
    Bytes descriptors = ByteArray(parts.Get(1u), "descriptors");
    Bytes available = ByteArray(parts.Get(2u), "available");
    Bytes used = ByteArray(parts.Get(3u), "used");
    bool event_index = parts.Get(4u).ToBoolean();
    size_t size = descriptors.length / 16;
    bool is_power = size > 0 && size <= 32768 && (size & (size - 1)) == 0;
    if (!is_power || available.length != 6 + 2 * size || used.length != 6 + 8 * size) {
      throw Napi::RangeError::New(env, "a ring whose parts do not belong together");
    }
    (n == 0 ? to_device_ : from_device_)
        .Set(state, descriptors.data, available.data, used.data, static_cast<uint32_t>(size), event_index);
    both.Set(n, parts);
  }
  rings_kept_ = Napi::Persistent(both.As<Napi::Object>());
  return env.Undefined();
}

// The addresses of pieces of the device VM's memory, and as many Uint8Arrays.
Napi::Value AccessPath::Memory(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  memory_.Clear();
  memory_kept_.Reset();
  if (!info[1].IsArray()) throw Napi::TypeError::New(env, "pieces must be an array");
  Napi::Array pieces = info[1].As<Napi::Array>();
  const double* addresses = TypedWords<double>(info[0], napi_float64_array, "addresses", pieces.Length(), nullptr);
  for (uint32_t n = 0; n < pieces.Length(); n++) {
    Bytes bytes = ByteArray(pieces.Get(n), "pieces");
    if (!(addresses[n] >= 0 && addresses[n] <= kMaxSafeInteger)) throw Napi::RangeError::New(env, "no address");
    memory_.Add({static_cast<uint64_t>(addresses[n]), bytes.length, bytes.data});
  }
  memory_kept_ = Napi::Persistent(pieces.As<Napi::Object>());
  return env.Undefined();
}

// Register memory whose first word counts the writes that were passed on; undefined: there is none.
Napi::Value AccessPath::Registers(const Napi::CallbackInfo& info) {
  writes_sent_ = nullptr;
  registers_kept_.Reset();
  if (info[0].IsUndefined()) return info.Env().Undefined();
  Bytes bytes = ByteArray(info[0], "registers");
  if (bytes.length < sizeof(uint32_t) || reinterpret_cast<uintptr_t>(bytes.data) % sizeof(uint32_t) != 0) {
    throw Napi::RangeError::New(info.Env(), "no register memory");
  }
  writes_sent_ = reinterpret_cast<uint32_t*>(bytes.data);
  registers_kept_ = Napi::Persistent(info[0].As<Napi::Object>());
  return info.Env().Undefined();
}

// A whole message with an id of the path's that TypeScript took from the ring. False when it is no reply to an access.
Napi::Value AccessPath::Deliver(const Napi::CallbackInfo& info) {
  Bytes message = Slice(info[0], info[1], info[2]);
  bool is_awaited = false;
  if (!TakeReply(message.data, message.length, nullptr, &is_awaited)) return Napi::Boolean::New(info.Env(), false);
  state_->received++;
  if (is_awaited && client_ != nullptr) client_->SendQueued();
  return Napi::Boolean::New(info.Env(), true);
}

// The words of shared/histogram.ts; undefined: nobody looks.
Napi::Value AccessPath::Measure(const Napi::CallbackInfo& info) {
  latencies_.words = nullptr;
  latencies_kept_.Reset();
  if (info[0].IsUndefined()) return info.Env().Undefined();
  constexpr size_t kLeast = Latencies::kCommands * Latencies::kWords;
  latencies_.words = TypedWords<uint32_t>(info[0], napi_uint32_array, "latencies", kLeast, &latencies_kept_);
  return info.Env().Undefined();
}

// The state's words come from TypeScript, and are believed; but a rest is the whole session's.
bool AccessPath::MayRun() const {
  if (state_->stopped != 0 || own_share_[kRests] != 0 || client_ == nullptr) return false;
  StreamMemory& memory = client_->memory();
  return memory.Position(StreamMemory::kQueued) == memory.Position(StreamMemory::kSent);
}

size_t AccessPath::FromClient(const RegisterMemory& registers, int* events) {
  if (!MayRun() || !to_device_.Runs()) return 0;
  StreamMemory& memory = client_->memory();
  Turn turn(state_->budget);
  const uint32_t start = memory.Position(StreamMemory::kScan);
  const uint32_t end = memory.Position(StreamMemory::kEnd);
  uint32_t at = start;
  size_t replies = 0;
  bool passed_on = false;
  bool goes_on = true;
  while (goes_on && state_->active == 0 && end - at >= sizeof(MessageHeader)) {
    const uint8_t* message = memory.Received(at);
    MessageHeader header;
    std::memcpy(&header, message, sizeof header);
    if (header.size < sizeof header || header.size > end - at) break;
    uint8_t* reply = memory.Reserve(replies, RegisterMemory::kMostReply);
    if (reply == nullptr || replies + RegisterMemory::kMostReply > kMostReplies) break;
    size_t from_memory = registers.Answer(message, header.size, reply);
    if (from_memory > 0) {
      replies += from_memory;
      state_->reads_from_memory++;
    } else {
      RegionAccess access;
      if (!CheckAccess(message, header, state_->device, &access)) break;
      // What is longer is TypeScript's.
      if (header.command == kRegionRead && access.count > kMostReplies - sizeof header - sizeof access) break;
      bool is_posted = IsPosted(header, state_->device, access);
      if (!PassOn(at, header, access, is_posted ? reply : nullptr)) break;
      passed_on = true;
      if (is_posted && (header.flags & kNoReply) == 0) replies += sizeof header + sizeof access;
    }
    at += header.size;
    goes_on = turn.Spend(header.size);
  }
  if (at == start) return 0;
  uint32_t handled = state_->active == 0 ? at : state_->pending[state_->active - 1].position;
  memory.words()[StreamMemory::kScan] = static_cast<int32_t>(at);
  memory.words()[StreamMemory::kFloor] = static_cast<int32_t>(handled);
  memory.Commit(handled, memory.Position(StreamMemory::kQueued) + static_cast<uint32_t>(replies));
  // The client first: it goes on while the device process is woken.
  if (replies > 0 && !client_->SendQueued()) *events |= kPathEvent;
  if (passed_on) Call(to_device_);
  EndTurn(turn, events);
  return at - start;
}

// Gives the device a message of the client's; one that is posted is answered now, at `early_reply`. False when that is
// not possible now.
bool AccessPath::PassOn(uint32_t position, const MessageHeader& header, const RegionAccess& access,
                        uint8_t* early_reply) {
  PendingAccess* entry = early_reply != nullptr ? nullptr : FindEntry();
  if (early_reply == nullptr && entry == nullptr) return false;
  DeviceRing::Buffer buffer;
  if (to_device_.Peek(memory_, &buffer) != DeviceRing::Next::kBuffer) return false;
  if (!buffer.is_writable || buffer.length < header.size) return false;
  const uint8_t* message = client_->memory().Received(position);
  MessageHeader request{0, header.command, header.size, kNoReply, 0};
  const uint32_t used = to_device_.NextUsed();
  if (entry != nullptr) {
    size_t number = static_cast<size_t>(entry - state_->pending);
    request.id = static_cast<uint16_t>(kFirstId + number);
    request.flags = 0;
    entry->client_id = header.id;
    entry->command = header.command;
    entry->flags = header.flags;
    entry->position = position;
    entry->end = position + header.size;
    entry->access = access;
    entry->used = used;
    entry->check = entry->Check();
    entry->started_at = state_->ticks;
    entry->measured_at = latencies_.Now();
    StoreLast(&entry->state, uint32_t{PendingAccess::kWaits});
    state_->active = static_cast<uint32_t>(number + 1);
  } else {
    MessageHeader reply{header.id, header.command, sizeof reply + sizeof access, kReply, 0};
    std::memcpy(early_reply, &reply, sizeof reply);
    std::memcpy(early_reply + sizeof reply, &access, sizeof access);
  }
  if (header.command == kRegionRead) {
    state_->reads++;
  } else {
    CountWrite();
    if (header.command == kRegionWrite) state_->writes++;
    if (early_reply != nullptr) state_->posted_writes++;
  }
  std::memcpy(buffer.bytes, &request, sizeof request);
  std::memcpy(buffer.bytes + sizeof request, message + sizeof header, header.size - sizeof header);
  state_->sent++;
  SentRecord& record = state_->sent_records[used & 1];
  record = {used, ++state_->sent_count, 0, position, 0};
  record.check = record.Check();
  CrashPoint();
  to_device_.Complete(buffer, header.size);
  CrashPoint();
  return true;
}

// Reads that could be answered from memory are the device's from here on, until it has done the write.
void AccessPath::CountWrite() {
  if (writes_sent_ == nullptr) return;
  uint32_t sent = __atomic_load_n(writes_sent_, __ATOMIC_RELAXED);
  __atomic_store_n(writes_sent_, sent + 1, __ATOMIC_RELEASE);
}

// The entry that was free for longest, as they are taken in turn; null when there are too few.
PendingAccess* AccessPath::FindEntry() {
  for (size_t n = 0; n < kMostAbandoned; n++) {
    uint32_t number = state_->next_entry % PathState::kPending;
    state_->next_entry = (number + 1) % PathState::kPending;
    if (state_->pending[number].state == PendingAccess::kFree) return &state_->pending[number];
  }
  return nullptr;
}

int AccessPath::FromDevice(int events) {
  if (!MayRun() || !from_device_.Runs()) return events;
  Turn turn(state_->budget);
  bool took = false;
  int left = 0;
  for (bool goes_on = true;;) {
    DeviceRing::Buffer buffer;
    DeviceRing::Next next = from_device_.Peek(memory_, &buffer);
    if (next == DeviceRing::Next::kNone) break;
    left = events;
    if (!goes_on || next == DeviceRing::Next::kOther || buffer.is_writable) break;
    bool is_awaited = false;
    if (!MayRun() || !TakeReply(buffer.bytes, buffer.length, &buffer, &is_awaited)) break;
    left = 0;
    took = true;
    state_->received++;
    if (is_awaited && !client_->SendQueued()) left |= kPathEvent;
    if (state_->active == 0 && state_->held != 0) left |= kPathEvent;
    goes_on = turn.Spend(buffer.length);
    if (left != 0) {
      left |= events;
      break;
    }
  }
  if (took) Call(from_device_);
  EndTurn(turn, &left);
  return left;
}

// Queues the reply to an access where somebody waits for it: `is_awaited`. False, and nothing has happened, when it is
// no reply to one. `buffer`: the ring's next one, which has the message and is given back; the device process can
// change it all the time.
bool AccessPath::TakeReply(const uint8_t* message, size_t length, const DeviceRing::Buffer* buffer, bool* is_awaited) {
  MessageHeader header;
  if (length < sizeof header || length > kMostReplies) return false;
  std::memcpy(&header, message, sizeof header);
  if ((header.flags & kTypeMask) != kReply || header.size != length || header.id < kFirstId) return false;
  size_t number = header.id - size_t{kFirstId};
  if (number >= PathState::kPending) return false;
  PendingAccess& entry = state_->pending[number];
  if (entry.state == PendingAccess::kFree || entry.command != header.command) return false;
  if (entry.state == PendingAccess::kWaits) {
    if (client_ == nullptr) return false;
    StreamMemory& memory = client_->memory();
    uint8_t* out = memory.Reserve(0, length);
    if (out == nullptr) return false;
    MessageHeader answer{static_cast<uint16_t>(entry.client_id), header.command, sizeof answer, kReply, 0};
    if ((header.flags & kError) != 0) {
      answer.flags |= kError;
      answer.error = header.error > 0 && header.error <= kMostErrno ? header.error : kEio;
    } else {
      size_t body = length - sizeof header;
      size_t wanted = sizeof entry.access;
      if (entry.command == kRegionRead) wanted += entry.access.count;
      else if (entry.command == kRegionWriteMulti) wanted = kWriteMultiHead;
      if (body != wanted) return false;
      std::memcpy(out + sizeof answer, message + sizeof header, body);
      bool is_same = entry.command == kRegionWriteMulti ||
                     std::memcmp(out + sizeof answer, &entry.access, sizeof entry.access) == 0;
      if (!is_same) return false;
      answer.size = header.size;
    }
    std::memcpy(out, &answer, sizeof answer);
    *is_awaited = (entry.flags & kNoReply) == 0;
    state_->active = 0;
    latencies_.Record(entry.command, entry.measured_at);
    memory.words()[StreamMemory::kFloor] = static_cast<int32_t>(entry.end);
    memory.Commit(entry.end, memory.Position(StreamMemory::kQueued) + (*is_awaited ? answer.size : 0));
  }
  StoreLast(&entry.state, uint32_t{PendingAccess::kFree});
  if (buffer != nullptr) {
    from_device_.Complete(*buffer, 0);
    CrashPoint();
  }
  return true;
}

void AccessPath::Call(DeviceRing& ring) {
  if (!ring.ShouldCall()) return;
  RingState& state = ring.state();
  if (state.call < 0) {
    state.owes_call = 1;
    return;
  }
  // What can fail here is the front-end's own eventfd.
  if (Signal(state.call) == 0) state_->signals++;
}

void AccessPath::EndTurn(const Turn& turn, int* events) {
  if (turn.cost == 0) return;
  if (turn.cost <= state_->budget.light_cost) {
    all_turns_[0]++;
    own_share_[kOwnTurns]++;
    return;
  }
  state_->turn_cost = turn.cost;
  state_->turn_ns = turn.Nanoseconds();
  *events |= kPathEvent;
}

PollTask* AccessPathTask(Napi::Env env, napi_value object, int fd) {
  class Task : public PollTask {
   public:
    Task(AccessPath* path, int fd) : path_(path), fd_(fd) {}
    int Before(int events) override {
      uint64_t count;
      // Somebody else may have been faster.
      if (TakeCount(fd_, &count) == EAGAIN) return 0;
      return path_->FromDevice(events);
    }

   private:
    AccessPath* path_;
    int fd_;
  };
  AccessPath* path = AccessPath::Of(env, object);
  return path == nullptr ? nullptr : new Task(path, fd);
}

void InitAccessPath(Napi::Env env, Napi::Object exports) { AccessPath::Init(env, exports); }
