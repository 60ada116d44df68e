// What a Poll does in C++ around a call of its callback, so that the callback need not call back into the addon for it.
#pragma once

#include <napi.h>

class PollTask {
 public:
  virtual ~PollTask() = default;

  // Before the callback is called with `events`, none of them an error. Returns the events to call it with: 0 for no
  // call.
  virtual int Before(int events) = 0;

  // After a call, unless the Poll was closed in it. Returns the events of a further call, 0 for none.
  virtual int After() { return 0; }

  // Whether Before has called JavaScript, which may have closed the Poll; asked once after it.
  virtual bool TakeRan() { return false; }
};

// The task of a Poll on an eventfd: takes its count.
PollTask* EventfdTask(int fd);

// The task that a Stream is (stream.cc); null when the object is not one.
PollTask* StreamTask(Napi::Env env, napi_value object);
