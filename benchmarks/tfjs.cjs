// The decoder of tfjs body-pix, called on fields that a benchmark wrote, one call per line of input.
//
//   node tfjs.cjs MODULES       then, line by line:
//   load FOLDER                 read fields.json and its float32 files; write poses.json, in image pixels;
//                               answers the number of people found
//   poses | masks 17 | masks 5  run once; answers milliseconds
//   instances 17 0.2            write masks.u8, people x height x width, of the poses with that score at least;
//                               answers their number
const fs = require("fs");
const path = require("path");
const readline = require("readline");

const modules = path.resolve(process.argv[2]);
const bodyPix = path.join(modules, "@tensorflow-models", "body-pix", "dist");
const tf = require(path.join(modules, "@tensorflow", "tfjs-core"));
const { decodeMultiplePoses } = require(path.join(bodyPix, "multi_person", "decode_multiple_poses.js"));
const { decodeMultipleMasksCPU } = require(path.join(bodyPix, "multi_person", "decode_multiple_masks_cpu.js"));
// Its own settings, but for those that the scene names.
const config = require(path.join(bodyPix, "body_pix_model.js")).MULTI_PERSON_INSTANCE_INFERENCE_CONFIG;

let scene;

function load(folder) {
  const about = JSON.parse(fs.readFileSync(path.join(folder, "fields.json")));
  const { rows, columns, scale } = about;
  const values = (name) => {
    const bytes = fs.readFileSync(path.join(folder, `${name}.f32`));
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4).slice();
  };
  const buffer = (name) => {
    const data = values(name);
    return tf.buffer([rows, columns, data.length / rows / columns], "float32", data);
  };
  scene = {
    ...about, folder,
    heatmap: buffer("heatmap"), short: buffer("short"), forward: buffer("forward"), backward: buffer("backward"),
    long: values("long"),
    segmentation: Uint8Array.from(values("seg"), (p) => (p > about.person ? 1 : 0)),
  };
  const inImage = ({ x, y }) => ({ x: x / scale, y: y / scale });
  scene.found = poses().map(({ score, keypoints }) => ({
    score, keypoints: keypoints.map((point) => ({ ...point, position: inImage(point.position) })),
  }));
  fs.writeFileSync(path.join(folder, "poses.json"), JSON.stringify(scene.found));
  return scene.found.length;
}

function poses() {
  return decodeMultiplePoses(
    scene.heatmap, scene.short, scene.forward, scene.backward, scene.stride,
    scene.people, scene.scoreThreshold, config.nmsRadius,
  );
}

function masks(found, keypoints) {
  const { height, width, rows, columns, stride, scale } = scene;
  const input = [(rows - 1) * stride + 1, (columns - 1) * stride + 1];
  const padding = { top: 0, left: 0, bottom: input[0] / scale - height, right: input[1] / scale - width };
  return decodeMultipleMasksCPU(
    scene.segmentation, scene.long, found, height, width, stride, input, padding, config.refineSteps, keypoints,
  );
}

function instances(keypoints, minScore) {
  const found = masks(scene.found.filter((pose) => pose.score >= minScore), keypoints);
  fs.writeFileSync(path.join(scene.folder, "masks.u8"), Buffer.concat(found));
  return found.length;
}

function timed(work) {
  const start = process.hrtime.bigint();
  work();
  return Number(process.hrtime.bigint() - start) / 1e6;
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const [what, ...rest] = line.split(" ");
  const answer = {
    load: () => load(line.slice("load ".length)),
    poses: () => timed(poses),
    masks: () => timed(() => masks(scene.found, Number(rest[0]))),
    instances: () => instances(...rest.map(Number)),
  }[what]();
  process.stdout.write(`${answer}\n`);
});
