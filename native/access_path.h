// The way of register accesses through the bridge: from the client's socket into the ring of the device VM, and the
// replies back, without JavaScript. The ways in are a Stream, which has received something (stream.cc), and the kick of
// the ring that replies come by (poll.cc).
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>

#include "access_check.h"
#include "arguments.h"
#include "latency.h"
#include "poll_task.h"
#include "register_memory.h"
#include "ring.h"
#include "turn.h"

// The event of a Poll by which TypeScript hears that the state has something for it.
constexpr int kPathEvent = 16;

// The client's connected socket.
class ClientSocket {
 public:
  // Nothing waits to be sent to it.
  virtual bool MaySend() const = 0;
  // How much of it was sent, or a negative errno.
  virtual int32_t Send(const uint8_t* bytes, size_t length) = 0;

 protected:
  ~ClientSocket() = default;
};

// An access that the device was asked for. The request's id on the link is the entry's number, plus kFirstId.
struct PendingAccess {
  // 0 when the entry is free. An abandoned one waits for a reply that is nobody's any more.
  enum State : uint32_t { kFree, kWaits, kAbandoned };
  uint32_t state;
  uint32_t client_id;
  uint32_t command;
  uint32_t flags;
  // In TypeScript's ticks.
  uint32_t started_at;
  // Where latencies are measured, in nanoseconds; else 0.
  uint32_t measured_at;
  RegionAccess access;
};
static_assert(sizeof(PendingAccess) == 40);

// All that the path knows, in memory of TypeScript's, whose tables are in shared/vfio-user/access-path.ts. Readable
// after a crash at any instruction: what was done is told by the rings' used indices, which are stored last of all that
// belongs to a message. A next_used that is one ahead of its ring's index belongs to a message that was not passed on.
struct PathState {
  // Few: they are used in turn, and with many sessions each costs a cache line.
  static constexpr size_t kPending = 16;
  static constexpr size_t kOut = 16384;

  // TypeScript's: why the path is stopped, as bits; its clock; whether commands wait for the end of the active access.
  uint32_t stopped;
  uint32_t ticks;
  uint32_t held;
  TurnBudget budget;
  // The entry that the client waits for, plus 1.
  uint32_t active;
  uint32_t next_entry;
  // Bytes of what was received last that were dealt with.
  uint32_t handled;
  // out[unsent_from, unsent_from + unsent_length) is to be sent to the client.
  uint32_t unsent_from;
  uint32_t unsent_length;
  // What the last turn that was not a light one cost, in bytes and nanoseconds; TypeScript clears it.
  uint32_t turn_cost;
  uint32_t turn_ns;
  // Counts, modulo 2^32.
  uint32_t reads;
  uint32_t reads_from_memory;
  uint32_t writes;
  uint32_t posted_writes;
  uint32_t sent;
  uint32_t received;
  uint32_t signals;
  uint32_t reserved;
  DeviceRegions device;
  PendingAccess pending[kPending];
  uint8_t out[kOut];
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

  // Deals with messages of the client's; returns how many bytes that were, and adds to the events to call JavaScript
  // with. The rest is TypeScript's.
  size_t FromClient(const uint8_t* bytes, size_t length, const RegisterMemory& registers, int* events);

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
  bool PassOn(const uint8_t* message, const MessageHeader& header, const RegionAccess& access, bool is_posted);
  bool TakeReply(const uint8_t* message, size_t length, const DeviceRing::Buffer* buffer, size_t* reply);
  PendingAccess* FindEntry();
  void CountWrite();
  void Call(DeviceRing& ring);
  void EndTurn(const Turn& turn, int* events);
  bool SendOut();

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
