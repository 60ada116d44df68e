// Closing what a peer handed over without waiting for it.
#pragma once

#include <napi.h>

#include <cstdint>

// Closes a descriptor, or has a thread do it: 0, or a number that is told to this environment, if there is one, when it is done.
uint32_t Discard(int fd, napi_env env = nullptr);
