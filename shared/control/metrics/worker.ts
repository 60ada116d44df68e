/**
 * The thread that serves metrics and the status page: so whoever asks, and however much, takes nothing from the event
 * loop that the VMs are served by, but for a snapshot every half a second. It only shows: there is nothing to change.
 */
import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { parentPort, workerData } from "node:worker_threads";
import { allowedHosts, hostName } from "./host-check.js";
import { prometheusText } from "./prometheus.js";
import type { Snapshot } from "./snapshot.js";

export interface WorkerData {
  readonly address: string;
  readonly port: number;
  readonly hosts: readonly string[];
}

/** To the program: undefined asks for a snapshot. */
export type FromWorker = undefined | { readonly port: number } | { readonly failed: string };

const SNAPSHOT_MS = 500;
const MAX_CONNECTIONS = 32;
const LIMITS = { maxHeaderSize: 8192, headersTimeout: 5000, requestTimeout: 5000, keepAliveTimeout: 5000 };
const HEADERS = {
  "Cache-Control": "no-store",
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};
const TEXT = "text/plain; charset=utf-8";
const METRICS = "text/plain; version=0.0.4; charset=utf-8";

const { address, port, hosts } = workerData as WorkerData;
const program = parentPort;
const allowed = allowedHosts(address, hosts);
const file = (name: string) => readFileSync(new URL(`../page/${name}`, import.meta.url));
const SCRIPTS = ["page.js", "draw.js", "format.js", "status.js"];
const FILES: Readonly<Record<string, readonly [type: string, bytes: Buffer]>> = {
  ...Object.fromEntries(SCRIPTS.map((name) => [`/${name}`, ["text/javascript; charset=utf-8", file(name)]])),
  "/": ["text/html; charset=utf-8", file("index.html")],
  "/style.css": ["text/css; charset=utf-8", file("style.css")],
  "/icon.svg": ["image/svg+xml", file("icon.svg")],
};

let snapshot: Promise<Snapshot> | undefined;
let takenAt = Number.NEGATIVE_INFINITY;
let arrived: (snapshot: Snapshot) => void = () => {};

/** Not older than half a second. */
function current(): Promise<Snapshot> {
  const now = performance.now();
  if (snapshot !== undefined && now - takenAt < SNAPSHOT_MS) return snapshot;
  takenAt = now;
  snapshot = new Promise((resolve) => {
    arrived = resolve;
  });
  program?.postMessage(undefined);
  return snapshot;
}

async function answer(
  { url = "/", method = "GET", headers }: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const send = (status: number, type: string, body: string | Buffer) => {
    response.writeHead(status, { ...HEADERS, "Content-Type": type, "Content-Length": Buffer.byteLength(body) });
    response.end(method === "HEAD" ? undefined : body);
  };
  const host = hostName(headers.host);
  if (host === undefined || !allowed.has(host)) {
    return send(421, TEXT, "This host is not served here: --metrics-host gives it another name.\n");
  }
  if (method !== "GET" && method !== "HEAD") return send(405, TEXT, "There is nothing to change here.\n");
  const path = url.replace(/\?.*$/s, "");
  if (path === "/metrics") return send(200, METRICS, await prometheusText(await current()));
  if (path === "/status.json") return send(200, "application/json", JSON.stringify(await current()));
  if (!Object.hasOwn(FILES, path))
    return send(404, TEXT, "There is no such page; there is /, /metrics, /status.json.\n");
  send(200, ...FILES[path]);
}

program?.on("message", (taken: Snapshot) => arrived(taken));
const server = createServer(LIMITS, (request, response) => {
  request.resume();
  void answer(request, response).catch(() => response.destroy());
});
server.maxConnections = MAX_CONNECTIONS;
server.on("error", (error: NodeJS.ErrnoException) => program?.postMessage({ failed: error.code ?? error.message }));
server.listen({ host: address, port, exclusive: true }, () => {
  program?.postMessage({ port: (server.address() as AddressInfo).port });
});
