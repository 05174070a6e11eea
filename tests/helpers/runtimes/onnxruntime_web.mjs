// Runs models in onnxruntime-web's WebAssembly backend: `node onnxruntime_web.mjs PACKAGE REQUESTS`.
// PACKAGE is the folder of the npm package; REQUESTS a JSON file with [{model, inputs: {name: {type, dims, file}}, folder}, ...].
// The outputs of a request are written into its folder, as NAME.bin and one outputs.json with their types and dimensions.
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, requests] = process.argv.slice(2);
const ort = await import(pathToFileURL(join(resolve(folder), "dist/ort.wasm.min.mjs")));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const arrays = { uint8: Uint8Array, int64: BigInt64Array, float32: Float32Array, bool: Uint8Array };

for (const { model, inputs, folder } of JSON.parse(readFileSync(requests))) {
  const session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ["wasm"] });
  const feed = {};
  for (const [name, { type, dims, file }] of Object.entries(inputs)) {
    const bytes = new Uint8Array(readFileSync(file));
    feed[name] = new ort.Tensor(type, new arrays[type](bytes.buffer), dims);
  }
  const outputs = await session.run(feed);
  const described = {};
  for (const [name, tensor] of Object.entries(outputs)) {
    writeFileSync(join(folder, `${name}.bin`), Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength));
    described[name] = { type: tensor.type, dims: tensor.dims };
  }
  writeFileSync(join(folder, "outputs.json"), JSON.stringify(described));
  await session.release();
}
