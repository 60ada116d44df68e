// Closing what a peer handed over without waiting for it.
#pragma once

#include <cstdint>

// Closes a descriptor, or has a thread do it: 0, or a number that TakeDiscarded gives when it is done.
uint32_t Discard(int fd);
