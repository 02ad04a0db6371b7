export type { AbortOptions } from "./abort.js";
export type { Config, CreateOptions, IceServer, RelayTokens, StartDelays } from "./config.js";
export type { Options } from "./options.js";
export { Connection, type CloseInfo } from "./connection.js";
export { Connector, generateIdentity, type ConnectorEventMap } from "./connector.js";
export {
  errorCodes,
  ThroughlineError,
  type ErrorCode,
  type LoadFailure,
  type LoadFailureReason,
  type ThroughlineErrorOptions,
} from "./errors.js";
export type {
  Attempt,
  Cause,
  ChangeReason,
  ConnectorEvent,
  NatReport,
  Path,
  PathEvent,
  PathKind,
  RelayReport,
  Report,
  Status,
  Strategy,
  StunReport,
} from "./events.js";
export { load, type WasmSource } from "./load.js";
export { Room, type Member, type RoomData, type RoomEvent, type RoomOptions } from "./room.js";
export type { DuplexStream, IncomingStream } from "./streams.js";
