// The decoder of tfjs body-pix, called on fields that the benchmark wrote, one timed call per line of input.
//
//   node tfjs.cjs MODULES       then, line by line:
//   load FOLDER                 read fields.json and its float32 files; answers the number of people found
//   poses | masks 17 | masks 5  run once; answers milliseconds
const fs = require("fs");
const path = require("path");
const readline = require("readline");

const modules = path.resolve(process.argv[2]);
const bodyPix = path.join(modules, "@tensorflow-models", "body-pix", "dist");
const tf = require(path.join(modules, "@tensorflow", "tfjs-core"));
const { decodeMultiplePoses } = require(path.join(bodyPix, "multi_person", "decode_multiple_poses.js"));
const { decodeMultipleMasksCPU } = require(path.join(bodyPix, "multi_person", "decode_multiple_masks_cpu.js"));
// Its own settings, but for the number of people: it must be allowed to find as many as there are.
const config = require(path.join(bodyPix, "body_pix_model.js")).MULTI_PERSON_INSTANCE_INFERENCE_CONFIG;

let scene;

function load(folder) {
  const { stride, people, side, cells } = JSON.parse(fs.readFileSync(path.join(folder, "fields.json")));
  const values = (name) => {
    const bytes = fs.readFileSync(path.join(folder, `${name}.f32`));
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4).slice();
  };
  const buffer = (name) => {
    const data = values(name);
    return tf.buffer([cells, cells, data.length / cells / cells], "float32", data);
  };
  scene = {
    stride, people, side,
    heatmap: buffer("heatmap"), short: buffer("short"), forward: buffer("forward"), backward: buffer("backward"),
    long: values("long"),
    segmentation: Uint8Array.from(values("seg"), (p) => (p > config.segmentationThreshold ? 1 : 0)),
  };
  scene.found = poses();
  return scene.found.length;
}

function poses() {
  return decodeMultiplePoses(
    scene.heatmap, scene.short, scene.forward, scene.backward, scene.stride,
    scene.people, config.scoreThreshold, config.nmsRadius,
  );
}

function masks(keypoints) {
  const padding = { top: 0, left: 0, bottom: 0, right: 0 };
  return decodeMultipleMasksCPU(
    scene.segmentation, scene.long, scene.found, scene.side, scene.side, scene.stride,
    [scene.side, scene.side], padding, config.refineSteps, keypoints,
  );
}

function timed(work) {
  const start = process.hrtime.bigint();
  work();
  return Number(process.hrtime.bigint() - start) / 1e6;
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const [what, argument] = line.split(" ");
  const answer = {
    load: () => load(line.slice("load ".length)),
    poses: () => timed(poses),
    masks: () => timed(() => masks(Number(argument))),
  }[what]();
  process.stdout.write(`${answer}\n`);
});
