/** A snapshot as Prometheus reads it: names by its conventions, in seconds and bytes. */
import { Counter, Gauge, Registry } from "prom-client";
import type { SessionSnapshot, Snapshot } from "./snapshot.js";

/** Counters by the name that the program has for them: a metric's name, and what it counts. */
const COUNTERS: Readonly<Record<string, readonly [name: string, help: string]>> = {
  clients: ["clients_total", "Clients, which are VMMs of driver VMs, that connected."],
  reads: ["register_reads_total", "Reads of registers by the driver VM."],
  readsFromMemory: ["register_reads_from_memory_total", "Of the reads, those that the device did not hear of."],
  writes: ["register_writes_total", "Writes to registers by the driver VM."],
  errors: ["command_errors_total", "Commands of clients that were refused."],
  timeouts: ["command_timeouts_total", "Commands that the device did not answer in time."],
  maps: ["window_maps_total", "Maps that were put into the device VM's window."],
  unmaps: ["window_unmaps_total", "Maps that were taken out of it."],
  hellos: ["device_starts_total", "Device processes that said what their device is."],
  postedWrites: ["posted_writes_total", "Writes that were answered as soon as they were queued."],
  commands: ["relayed_commands_total", "Commands that were passed on to the device process."],
  doorbells: ["interrupts_relayed_total", "Interrupts that were passed on to the driver VM."],
  ioEvents: ["ioeventfd_signals_total", "Signals of the driver VM's by ioeventfds."],
  messagesSent: ["link_messages_sent_total", "Messages to the device process."],
  messagesReceived: ["link_messages_received_total", "Messages of the device process."],
  messageSignals: ["link_signals_total", "Interrupts of the device VM for messages."],
  dmaMessages: ["dma_messages_total", "DMA that went by messages to the client."],
  copies: ["copies_total", "Copies between driver-VM memory and the device VM."],
  copiedBytes: ["copied_bytes_total", "Bytes of these copies."],
  readThroughWindow: ["dma_read_bytes_total", "Bytes that the device read from mapped driver-VM memory."],
  writtenThroughWindow: ["dma_written_bytes_total", "Bytes that the device wrote to mapped driver-VM memory."],
  movedByCopy: ["dma_copied_bytes_total", "Bytes of DMA that the bridge copied."],
  movedByMessage: ["dma_message_bytes_total", "Bytes of DMA that went by messages."],
  interrupts: ["interrupts_total", "Interrupts that the device triggered."],
  doorbellsRung: ["doorbells_total", "Doorbells that the device rang."],
};

const PREFIX = "vfio_user_";
const NS_PER_S = 1e9;

export function prometheusText(snapshot: Snapshot): Promise<string> {
  const registry = new Registry();
  const { sessions } = snapshot;
  /** A value for each session. */
  const gauge = (name: string, help: string, value: (session: SessionSnapshot) => number) => {
    const metric = new Gauge({ name: PREFIX + name, help, labelNames: ["session"], registers: [registry] });
    for (const session of sessions) metric.set({ session: session.name }, value(session));
  };
  const info = new Gauge({
    name: `${PREFIX}build_info`,
    help: "Which program this is.",
    labelNames: ["program", "version"],
    registers: [registry],
  });
  info.set({ program: snapshot.program, version: snapshot.version }, 1);
  gauge("client_connected", "Whether a driver VM is connected.", ({ client }) => Number(client));
  gauge("draining", "Whether no new driver VM is taken.", ({ draining }) => Number(draining));
  gauge("dma_maps", "DMA maps of the driver VM.", ({ maps }) => maps);
  gauge("dma_window_maps", "Of the maps, those in the window of the device VM.", ({ windowMaps }) => windowMaps);
  gauge("dma_mapped_bytes", "Driver-VM memory that is mapped.", ({ mappedBytes }) => mappedBytes);
  const state = new Gauge({
    name: `${PREFIX}device_state`,
    help: "1 for the state that the device side has.",
    labelNames: ["session", "state"],
    registers: [registry],
  });
  for (const { name, device } of sessions) state.set({ session: name, state: device }, 1);
  for (const [key, [name, help]] of Object.entries(COUNTERS)) {
    if (!sessions.some(({ counts }) => counts[key] !== undefined)) continue;
    const counter = new Counter({ name: PREFIX + name, help, labelNames: ["session"], registers: [registry] });
    for (const session of sessions) counter.inc({ session: session.name }, session.counts[key] ?? 0);
  }
  const commands = new Counter({
    name: `${PREFIX}commands_total`,
    help: "Commands of clients, by their kind.",
    labelNames: ["session", "command"],
    registers: [registry],
  });
  for (const { name, commands: counts } of sessions) {
    for (const [command, count] of Object.entries(counts)) commands.inc({ session: name, command }, count);
  }
  addLatencies(registry, snapshot);
  addProcess(registry, snapshot);
  return registry.metrics();
}

/** The buckets are counted already, so it is no Histogram of the library's, which counts by itself. */
function addLatencies(registry: Registry, { sessions, bounds }: Snapshot): void {
  const name = `${PREFIX}command_duration_seconds`;
  const values = sessions.flatMap((session) =>
    session.latencies.flatMap(({ command, summary, sum, cumulative }) => {
      const labels = { session: session.name, command };
      return [
        ...cumulative.map((value, n) => ({
          metricName: `${name}_bucket`,
          labels: { ...labels, le: bounds[n] / NS_PER_S },
          value,
        })),
        { metricName: `${name}_bucket`, labels: { ...labels, le: "+Inf" }, value: summary.count },
        { metricName: `${name}_sum`, labels, value: sum / NS_PER_S },
        { metricName: `${name}_count`, labels, value: summary.count },
      ];
    }),
  );
  const help = "From a command's arrival to its reply, since somebody looks.";
  const metric = { name, help, type: "histogram", aggregator: "sum", get: () => ({ ...metric, values }) };
  registry.registerMetric(metric as unknown as Gauge);
}

function addProcess(registry: Registry, { cpuSeconds, residentBytes, startedAt }: Snapshot): void {
  const registers = [registry];
  new Counter({ name: "process_cpu_seconds_total", help: "CPU time.", registers }).inc(cpuSeconds);
  new Gauge({ name: "process_resident_memory_bytes", help: "Memory.", registers }).set(residentBytes);
  new Gauge({ name: "process_start_time_seconds", help: "When it started.", registers }).set(startedAt / 1000);
}
