// Threads for what may wait for a peer: see discard.cc.
#pragma once

#include <functional>

// Runs `work` in a thread of its own, which takes no signals. False when there can be none.
bool StartWithoutSignals(std::function<void()> work);
