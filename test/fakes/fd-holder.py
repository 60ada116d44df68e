"""A service manager that a test has in its hand: fd-holder.py SOCKET PROGRAM ARGUMENT... starts the program, keeps the
descriptors that it stores, and does what lines of JSON on its standard input say: what is to become of what is kept
while the program is dead, and how it is to die. Each is answered by a line."""
import array
import json
import mmap
import os
import select
import signal
import socket
import sys

path, program = sys.argv[1], sys.argv[2:]
inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
inbox.bind(path)
kept = []
child = 0


def say(what):
    print(json.dumps(what), flush=True)


def take():
    text, parts, _, _ = inbox.recvmsg(4096, socket.CMSG_SPACE(253 * 4))
    fds = array.array("i")
    for level, kind, data in parts:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % 4])
    fields = dict(line.split("=", 1) for line in text.decode().split("\n") if "=" in line)
    name = fields.get("FDNAME", "stored")
    if fields.get("FDSTOREREMOVE") == "1":
        for _, fd in [each for each in kept if each[0] == name]:
            os.close(fd)
        kept[:] = [each for each in kept if each[0] != name]
    elif fields.get("FDSTORE") == "1":
        kept.extend((name, fd) for fd in fds)
    else:
        for fd in fds:
            os.close(fd)


def take_all():
    while select.select([inbox], [], [], 0)[0]:
        take()


def start():
    global child
    child = os.fork()
    if child > 0:
        return
    os.setpgid(0, 0)
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    os.dup2(0, 1)
    high = [os.dup2(fd, 1000 + n) for n, (_, fd) in enumerate(kept)]
    for n, fd in enumerate(high):
        os.dup2(fd, 3 + n)
    os.closerange(3 + len(high), 3000)
    names = ":".join(name for name, _ in kept)
    own = {"NOTIFY_SOCKET": path, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept)), "LISTEN_FDNAMES": names}
    os.execvpe(program[0], program, {**os.environ, **own})


def end(number):
    global child
    if child == 0:
        return None
    os.kill(child, number)
    ended = 0
    while ended == 0:
        if select.select([inbox], [], [], 0.005)[0]:
            take()
        ended, status = os.waitpid(child, os.WNOHANG)
    child = 0
    take_all()
    return os.waitstatus_to_exitcode(status)


def place(name):
    return next(n for n, each in enumerate(kept) if each[0] == name)


def replace(name, fd):
    n = place(name)
    os.close(kept[n][1])
    kept[n] = (name, fd)


def change(kind, name, *more):
    if kind == "drop":
        os.close(kept.pop(place(name))[1])
    elif kind == "add":
        kept.append((name, os.eventfd(0)))
    elif kind == "rename":
        kept[place(name)] = (more[0], kept[place(name)][1])
    elif kind == "swap":
        a, b = place(name), place(more[0])
        kept[a], kept[b] = (name, kept[b][1]), (more[0], kept[a][1])
    elif kind == "file":
        replace(name, os.open(more[0], os.O_RDWR))
    elif kind == "eventfd":
        replace(name, os.eventfd(0))
    elif kind == "socket":
        replace(name, socket.socketpair()[0].detach())
    elif kind == "memory":
        fd = os.memfd_create("foreign")
        os.ftruncate(fd, more[0])
        replace(name, fd)
    elif kind == "truncate":
        copy = os.memfd_create("state")
        with open(f"/proc/self/fd/{kept[place(name)][1]}", "rb") as source:
            os.write(copy, source.read(more[0]))
        replace(name, copy)
    elif kind == "byte":
        with mmap.mmap(kept[place(name)][1], 0) as memory:
            memory[more[0]] ^= more[1]
    else:
        raise ValueError(kind)


def obey(order):
    if order["do"] == "kept":
        take_all()
        kinds = [[name, os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size] for name, fd in kept]
        return {"pid": child, "kept": kinds}
    if order["do"] == "bytes":
        with open(f"/proc/self/fd/{kept[place(order['name'])][1]}", "rb") as source:
            source.seek(order["offset"])
            return {"bytes": source.read(order["length"]).hex()}
    if order["do"] == "end":
        return {"code": end(order.get("signal", signal.SIGTERM))}
    end(order.get("signal", signal.SIGKILL))
    for each in order["changes"]:
        change(*each)
    start()
    return {"pid": child}


start()
say({"pid": child})
while True:
    ready = select.select([inbox, sys.stdin], [], [])[0]
    if inbox in ready:
        take()
    if sys.stdin in ready:
        line = sys.stdin.readline()
        if line == "":
            break
        say(obey(json.loads(line)))
end(signal.SIGKILL)
