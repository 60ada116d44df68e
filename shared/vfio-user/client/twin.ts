/** The twin socket as a client has it: the server's commands come over it (vfio-user, "VFIO_USER_VERSION"). */
import { fileStatus } from "../../../native/index.js";
import { isSystemError } from "../../errors.js";
import { Command } from "../../spec/vfio-user.js";
import { Connection, type Frame } from "../socket/connection.js";
import { badReply } from "./requests.js";

const refuse: () => never = () => badReply(Command.VERSION, "no twin socket");

/**
 * Takes the twin socket, fds[index], out of the fds of VERSION's reply. A server that says it has one and sends none
 * could not be heard: that is an error. @throws ProtocolError EPROTO
 */
export function takeTwin(fds: number[], index: number, command: (twin: Connection, frame: Frame) => void): Connection {
  const fd = fds[index];
  if (fd === undefined || fileStatus(fd).kind !== "socket") refuse();
  try {
    const twin = new Connection(fd, { command: (frame) => command(twin, frame), reply: () => {}, gone: () => {} });
    fds[index] = -1;
    return twin;
  } catch (error) {
    // Opened as a path only, it is a socket that nobody can use.
    if (!isSystemError(error)) throw error;
    refuse();
  }
}
