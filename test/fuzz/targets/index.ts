/**
 * All targets by name, each loaded when it is wanted. The protocol's ends, vfio-user-server, vfio-user-client,
 * vhost-user, virtqueue-device, virtqueue-driver, access-path and device-access; the link's, link and guest-virtio;
 * what is behind them, endpoint, nvme and nvme-lanes; and planted, whose bugs must be found.
 */
import type { Target } from "../target.js";
import type { Bug } from "./planted.js";

const load = (module: () => Promise<{ createTarget: Target }>) => async () => (await module()).createTarget;
const endpoint = (only: "all" | "config") => async () => (await import("./endpoint.js")).endpointTarget(only);
const nvme = (lanes: number) => async () => (await import("./nvme.js")).nvmeTarget(lanes);
const bug = (kind: Bug) => async () => (await import("./planted.js")).planted(kind);

const real = {
  "vfio-user-server": load(() => import("./vfio-user-server.js")),
  "vfio-user-client": load(() => import("./vfio-user-client.js")),
  "virtqueue-device": load(() => import("./virtqueue-device.js")),
  "virtqueue-driver": load(() => import("./virtqueue-driver.js")),
  "access-path": load(() => import("./access-path.js")),
  "device-access": load(() => import("./device-access.js")),
  endpoint: endpoint("all"),
  "pci-config": endpoint("config"),
  "vhost-user": load(() => import("./vhost-user.js")),
  link: load(() => import("./link.js")),
  "guest-virtio": load(() => import("./guest-virtio.js")),
  nvme: nvme(0),
  "nvme-lanes": nvme(1),
};

/** What is fuzzed when no target is named. */
export const TARGETS = Object.keys(real);

export const targets: Readonly<Record<string, () => Promise<Target>>> = {
  ...real,
  "planted-exception": bug("exception"),
  "planted-rejection": bug("rejection"),
  "planted-hang": bug("hang"),
  "planted-stall": bug("stall"),
  "planted-crash": bug("crash"),
  "planted-fds": bug("fds"),
  "planted-memory": bug("memory"),
  "planted-answer": bug("answer"),
  "planted-canary": bug("canary"),
};
