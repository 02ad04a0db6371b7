// Uses the types of every entry, as a project that checks the types of its dependencies does.
import { Connector, ThroughlineError, type Config, type LoadFailure, type PathEvent } from "throughline";
import { attach, serve, type Bridge } from "throughline/bridge";
import { Connector as Inline } from "throughline/inline";
import { Mesh, type MeshEvent } from "throughline/mesh";
import { join, share } from "throughline/tabs";
import wasm from "throughline/wasm";

export async function use(config: Config, ticket: string): Promise<LoadFailure | undefined> {
  await using me = await Connector.create({ ...config, wasm });
  const same: Promise<Inline> = Inline.create({ signal: AbortSignal.timeout(1000) });
  await using connection = await me.connect(ticket);
  const { readable, writable } = await connection.open("chat/1");
  await readable.pipeTo(writable as WritableStream<Uint8Array>);
  for await (const event of connection.paths()) seen(event);
  const error = await same.then(() => undefined, (error: ThroughlineError) => error);
  return error?.load;
}

function seen(event: PathEvent): void {
  if (event.event === "path") console.log(event.path, event.strategy, event.ms);
}

export async function meet(me: Connector): Promise<MeshEvent | undefined> {
  using mesh = await Mesh.join(me, "room");
  for await (const event of mesh) return event;
  return undefined;
}

export async function inPage(worker: Worker | SharedWorker | MessagePort): Promise<void> {
  using bridge: Bridge = serve(worker);
  await bridge.attached;
  await bridge.closed;
}

export async function inWorker(port: MessagePort): Promise<void> {
  await attach({ port, signal: AbortSignal.timeout(1000) });
}

export async function inTab(worker: Worker | SharedWorker | MessagePort): Promise<string> {
  await using me: Connector = await join(worker, { signal: AbortSignal.timeout(1000) });
  await join(() => new SharedWorker("shared.js"));
  return me.peerId;
}

export function inSharedWorker(config: Config): void {
  share(config);
  share(() => Connector.create(config));
}
