// Measures the same over a bare RTCDataChannel, as `window.bare`. Each measurement has its own channel, as our
// streams have. Text messages are commands, and the other messages are the bytes.

/** How many bytes may be queued in the browser: sending waits above the first number, and goes on below the second. */
const SEND_MARKS = [1 << 20, 1 << 18];

let pc;

const description = async () => {
  if (pc.iceGatheringState !== "complete") {
    await new Promise((resolve) => pc.addEventListener("icegatheringstatechange", () => pc.iceGatheringState === "complete" && resolve()));
  }
  return pc.localDescription.toJSON();
};

async function offer() {
  pc = new RTCPeerConnection();
  pc.createDataChannel("first");
  await pc.setLocalDescription();
  return description();
}

async function answer(offer) {
  pc = new RTCPeerConnection();
  pc.addEventListener("datachannel", ({ channel }) => serve(channel));
  await pc.setRemoteDescription(offer);
  await pc.setLocalDescription();
  return description();
}

async function accept(answer) {
  const connected = new Promise((resolve) => pc.addEventListener("connectionstatechange", () => pc.connectionState === "connected" && resolve()));
  await pc.setRemoteDescription(answer);
  await connected;
}

function serve(channel) {
  channel.binaryType = "arraybuffer";
  let bytes = 0;
  channel.onmessage = async ({ data }) => {
    if (channel.label === "echo") return channel.send(data);
    if (typeof data !== "string") return void (bytes += data.byteLength);
    if (data === "end") return channel.send(String(bytes));
    await fill(channel, ...JSON.parse(data));
    channel.send("end");
  };
}

async function open(label) {
  const channel = pc.createDataChannel(label);
  channel.binaryType = "arraybuffer";
  await new Promise((resolve) => (channel.onopen = resolve));
  return channel;
}

async function fill(channel, ms, size) {
  const message = new Uint8Array(size).fill(0x5a);
  channel.bufferedAmountLowThreshold = SEND_MARKS[1];
  for (const start = performance.now(); performance.now() - start < ms; ) {
    if (channel.bufferedAmount >= SEND_MARKS[0]) await new Promise((resolve) => (channel.onbufferedamountlow = resolve));
    channel.send(message);
  }
}

const mbit = (bytes, start) => (bytes * 8) / 1000 / (performance.now() - start);

async function upload(ms, size) {
  const channel = await open("bench");
  const counted = new Promise((resolve) => (channel.onmessage = ({ data }) => resolve(Number(data))));
  const start = performance.now();
  await fill(channel, ms, size);
  channel.send("end");
  const rate = mbit(await counted, start);
  channel.close();
  return rate;
}

async function download(ms, size) {
  const channel = await open("bench");
  let bytes = 0;
  const ended = new Promise((resolve) => (channel.onmessage = ({ data }) => (typeof data === "string" ? resolve() : (bytes += data.byteLength))));
  const start = performance.now();
  channel.send(JSON.stringify([ms, size]));
  await ended;
  const rate = mbit(bytes, start);
  channel.close();
  return rate;
}

async function roundTrip(times, size) {
  const channel = await open("echo");
  const once = () =>
    new Promise((resolve) => {
      channel.onmessage = resolve;
      channel.send(new Uint8Array(size));
    });
  await once();
  const start = performance.now();
  for (let i = 0; i < times; i++) await once();
  const ms = (performance.now() - start) / times;
  channel.close();
  return ms;
}

window.bare = { offer, answer, accept, upload, download, roundTrip };
