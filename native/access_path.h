// The way of register accesses through the bridge: from the client's socket into the ring of the device VM, and the
// replies back, without JavaScript. The ways in are a Stream, which has received something (stream.cc), and the kick of
// the ring that replies come by (poll.cc).
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>

#include "access_check.h"
#include "access_state.h"
#include "arguments.h"
#include "latency.h"
#include "poll_task.h"
#include "register_memory.h"
#include "ring.h"
#include "stream_memory.h"
#include "turn.h"

// The event of a Poll by which TypeScript hears that the state has something for it.
constexpr int kPathEvent = 16;

// The client's connected socket.
class ClientSocket {
 public:
  virtual StreamMemory& memory() = 0;
  // Sends all that is queued. False when that was not possible.
  virtual bool SendQueued() = 0;

 protected:
  ~ClientSocket() = default;
};

class AccessPath : public Napi::ObjectWrap<AccessPath> {
 public:
  static void Init(Napi::Env env, Napi::Object exports);
  explicit AccessPath(const Napi::CallbackInfo& info);

  // The path of an object of JavaScript's; null when it is none.
  static AccessPath* Of(Napi::Env env, napi_value object);

  void SetClient(ClientSocket* client) { client_ = client; }
  // It may be another one's by now.
  void Leave(const ClientSocket* client) {
    if (client_ == client) client_ = nullptr;
  }

  // The client waits for an access.
  bool IsBusy() const { return state_->active != 0; }

  // Deals with messages of the client's, from the first that was not taken; returns how many bytes that were, and adds
  // to the events to call JavaScript with. The rest is TypeScript's.
  size_t FromClient(const RegisterMemory& registers, int* events);

  // Deals with what the device process has sent. Returns the events to call JavaScript with, of those given where
  // something is left to it.
  int FromDevice(int events);

 private:
  Napi::Value Rings(const Napi::CallbackInfo& info);
  Napi::Value Memory(const Napi::CallbackInfo& info);
  Napi::Value Registers(const Napi::CallbackInfo& info);
  Napi::Value Deliver(const Napi::CallbackInfo& info);
  Napi::Value Measure(const Napi::CallbackInfo& info);

  bool MayRun() const;
  bool PassOn(uint32_t position, const MessageHeader& header, const RegionAccess& access, uint8_t* early_reply);
  bool TakeReply(const uint8_t* message, size_t length, const DeviceRing::Buffer* buffer, bool* is_awaited);
  PendingAccess* FindEntry();
  void CountWrite();
  void Call(DeviceRing& ring);
  void EndTurn(const Turn& turn, int* events);

  PathState* state_;
  // Light turns of all sessions; this one's, and whether it rests.
  uint32_t* all_turns_;
  uint32_t* own_share_;
  ClientSocket* client_ = nullptr;
  DeviceRing to_device_;
  DeviceRing from_device_;
  GuestMemory memory_;
  // The count of writes that were passed on, in register memory; null where there is none.
  uint32_t* writes_sent_ = nullptr;
  Latencies latencies_;
  // What JavaScript owns.
  Napi::ObjectReference state_kept_;
  Napi::ObjectReference all_turns_kept_;
  Napi::ObjectReference own_share_kept_;
  Napi::ObjectReference rings_kept_;
  Napi::ObjectReference memory_kept_;
  Napi::ObjectReference registers_kept_;
  Napi::ObjectReference latencies_kept_;
};

// The task of a Poll on the kick of the ring that replies come by: takes its count first.
PollTask* AccessPathTask(Napi::Env env, napi_value object, int fd);
