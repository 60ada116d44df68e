// The bytes of a connected stream socket on their way in and out, in memory that may outlive this process
// (docs/decisions/023-exactly-once.md): two rings, each mapped twice, one behind the other, so that every message is in
// one piece; and in front of them what tells the next process how far the last one came.
//
// Positions count bytes modulo 2^32. What was received up to `handled` is dealt with, and what was sent is in [sent,
// queued); both change by one store. The kernel stores the results of recvmmsg() and sendmmsg() into the memory itself.
#pragma once

#include <napi.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "arguments.h"
#include "stream_mapping.h"
#include "stream_state.h"

class StreamMemory : public Napi::ObjectWrap<StreamMemory> {
 public:
  // Words in memory of TypeScript's, which both sides read and write without a call; native/stream.ts has the same.
  enum Word : size_t {
    kEnd,
    kScan,
    kFloor,
    kHandled,
    kQueued,
    kSent,
    kBase,
    kRoom,
    kMostFds,
    kPeeks,
    kReceived,
    kReply,
    kReplied,
    kReads,
    kServed,
    kHasFds,
    kWords
  };
  // In kReceived: nothing was received.
  static constexpr int32_t kNothing = INT32_MIN;
  static constexpr uint32_t kSizeOffset = 4;

  static void Init(Napi::Env env, Napi::Object exports);
  explicit StreamMemory(const Napi::CallbackInfo& info);
  // Null when the object is none.
  static StreamMemory* Of(Napi::Env env, napi_value object);

  int32_t* words() { return words_; }
  uint32_t Position(Word word) const { return static_cast<uint32_t>(words_[word]); }
  // A received byte, with all that follow it in the ring.
  uint8_t* Received(uint32_t position) { return received_ + ((position - Position(kBase)) & (received_size_ - 1)); }

  // Receives behind what is there: the byte count, 0 at the end of the stream, or a negative errno. `fds` as in
  // ReceiveMessage. With kPeeks set, what has descriptors is left in the socket: `*has_fds`, and `fds` are copies.
  ssize_t Receive(int fd, int32_t* fds, bool* has_fds);

  // Where `length` bytes can be queued, behind `ahead` others that are not yet; null when there is no room.
  uint8_t* Reserve(size_t ahead, size_t length);
  // Queues what was put there, and says how far commands are dealt with, at once.
  void Commit(uint32_t handled, uint32_t queued);
  // Sends the next `length` bytes, which are queued: how many were, 0 when the socket is full, or a negative errno.
  int32_t Send(int fd, size_t length, msghdr* control = nullptr);

 private:
  Napi::Value Begin(const Napi::CallbackInfo& info);
  Napi::Value Load(const Napi::CallbackInfo& info);
  Napi::Value PeekMethod(const Napi::CallbackInfo& info);
  Napi::Value ReceiveMethod(const Napi::CallbackInfo& info);
  Napi::Value Queue(const Napi::CallbackInfo& info);
  Napi::Value CommitMethod(const Napi::CallbackInfo& info);
  Napi::Value SendMethod(const Napi::CallbackInfo& info);
  Napi::Value Retract(const Napi::CallbackInfo& info);
  Napi::Value UnsentSize(const Napi::CallbackInfo& info);
  Napi::Value Release(const Napi::CallbackInfo& info);

  // A method that is not there after `release`.
  template <Napi::Value (StreamMemory::*method)(const Napi::CallbackInfo&)>
  Napi::Value Held(const Napi::CallbackInfo& info) {
    if (mapping_ == nullptr) throw Napi::Error::New(info.Env(), "the stream's memory was released");
    return (this->*method)(info);
  }
  uint8_t* Unsent(uint32_t position) const { return unsent_ + ((position - unsent_base_) & (unsent_size_ - 1)); }
  uint32_t SizeAt(const uint8_t* message) const;
  size_t Room() const;
  void Rebase();
  ssize_t Peek(int fd, size_t length, int32_t* fds, size_t most, bool* is_cut);
  ssize_t Consume(int fd, size_t length, int32_t* fds, size_t most, bool* is_cut);
  void StoreReceived(uint32_t position);
  bool LoadReceived(uint32_t handled);
  bool LoadSent();

  std::shared_ptr<StreamMapping> mapping_;
  StreamState* state_;
  uint8_t* received_;
  uint8_t* unsent_;
  uint32_t received_size_;
  uint32_t unsent_size_;
  uint32_t unsent_base_ = 0;
  // As they were committed last.
  uint32_t handled_ = 0;
  uint32_t queued_ = 0;
  int32_t* words_;
  Napi::ObjectReference words_kept_;
};
